"""What one sees of a run while it runs: progress bar, ``metrics.jsonl``, Accelerate's trackers.

Metrics stay on the device and are added up there; the host reads them once a line.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from slotcon_hub.files import atomic_write
from training.engine.errors import RunError

__all__ = ["Check", "Diagnose", "Diverged", "Monitor", "peak_memory"]

Check = tuple[str, bool, str]
"""A kind of trouble, whether it is there now, and the warning."""

Diagnose = Callable[[Mapping[str, float], Mapping[str, Tensor]], tuple[dict[str, float], list[Check]]]
"""From the means of a line's scalars and the sums of its vectors to further metrics and checks, of the task."""


class Diverged(RunError):
    """Loss or gradients are NaN or infinite."""


class Monitor:
    """Collects the metrics of steps, writes a line of them every so often, and warns of trouble."""

    sums: Tensor | None
    totals: dict[str, Tensor]
    broken: Tensor | None
    grad_norm: Tensor | None
    overflow: Tensor | None
    forwards: int
    waited: float
    since: float

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        steps: range,
        batch_size: int,
        log_every: int,
        *,
        diagnose: Diagnose = lambda means, totals: ({}, []),
        shown: Mapping[str, str] | None = None,
    ) -> None:
        """Open the progress bar of the steps that are to be taken.

        Args:
            folder: of the run.
            accelerator: whose processes the metrics are averaged over.
            steps: of the run, from the one it starts at.
            batch_size: of all processes, for images per second.
            log_every: steps a line.
            diagnose: derives further metrics and warnings from those of a line.
            shown: names of metrics beside the progress bar, with their formats; the loss by default.
        """
        self.path, self.accelerator = folder / "metrics.jsonl", accelerator
        self.batch_size, self.log_every = batch_size, log_every
        self.diagnose, self.shown = diagnose, shown or {"loss": ".3f"}
        main = accelerator.is_main_process
        self.bar = tqdm(total=steps.stop, initial=steps.start, unit="step", disable=not main, dynamic_ncols=True)
        if main and self.path.exists():
            self._drop_lines_after(steps.start)
        self.warned: set[str] = set()
        self._reset()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time inside out of the speed: an evaluation between steps is not training."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def add(self, metrics: Mapping[str, Tensor], step: int) -> None:
        """Add the metrics of a forward of the step with this number; nothing is read from the device.

        Args:
            metrics: by name, ``loss`` among them. Scalars are averaged over the forwards and processes of a line,
                vectors are summed over them.
            step: from 1.
        """
        self.names = [name for name, value in metrics.items() if value.ndim == 0]
        values = torch.stack([metrics[name].detach().float() for name in self.names])
        self.sums = values if self.sums is None else self.sums + values
        for name in metrics.keys() - self.names:
            self.totals[name] = self.totals.get(name, 0) + metrics[name].detach()
        self.forwards += 1
        number = torch.where(values.isfinite(), torch.inf, float(step))
        self.broken = number if self.broken is None else self.broken.minimum(number)

    def add_gradients(self, parameters: Iterable[Tensor], step: int) -> None:
        """Add the gradient norm of a step; nothing is read from the device."""
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.grad_norm = norm if self.grad_norm is None else self.grad_norm + norm
        if self.accelerator.scaler is None:  # which skips steps whose gradients overflow
            number = torch.where(norm.isfinite(), torch.inf, float(step))
            self.overflow = number if self.overflow is None else self.overflow.minimum(number)

    def step(self, step: int, values: dict[str, float], saving: bool) -> bool:
        """Count a step; every ``log_every`` steps, after the last, and before a checkpoint, write a line.

        Args:
            step: steps taken, including this one.
            values: additional values for the line.
            saving: always write a line, since a checkpoint follows: raise on NaN/Inf first.

        Returns:
            Whether a line was written.

        Raises:
            Diverged: the loss has NaN/Inf, or the gradients have, without a gradient scaler.
        """
        self.bar.update()
        self.steps += 1
        due = saving or step % self.log_every == 0 or step == self.bar.total
        if due:
            self._line(step, values)
            self._reset()
        return due

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()

    def _reset(self) -> None:
        self.sums = self.broken = self.grad_norm = self.overflow = None
        self.totals = {}
        self.forwards = self.steps = 0
        self.waited, self.since = 0.0, time.perf_counter()

    def _line(self, step: int, values: dict[str, float]) -> None:
        assert self.sums is not None
        mine = torch.cat([self.sums / self.forwards, self.sums.new_tensor([self.waited])])
        everyone = self.accelerator.gather(mine[None]).cpu()
        *means, _ = everyone.mean(0).tolist()
        waited = everyone[:, -1].max().item()  # all processes wait for the slowest loader
        measured = dict(zip(self.names, means, strict=True))
        totals = {name: self.accelerator.reduce(self.totals[name], "sum").cpu() for name in sorted(self.totals)}
        seconds = time.perf_counter() - self.since
        derived, checks = self.diagnose(measured, totals)
        line = {
            "step": step,
            **measured,
            **values,
            **derived,
            "images_per_second": self.steps * self.batch_size / seconds,
            "data_wait": waited / seconds,
            "memory_gb": peak_memory(self.accelerator.device),
        }
        overflow = math.inf if self.overflow is None else float(self.overflow)
        if self.grad_norm is not None and math.isfinite(norm := float(self.grad_norm) / self.steps):
            line["grad_norm"] = norm  # fp16 skips steps whose gradients overflow
        if not math.isfinite(line["loss"]) or overflow < math.inf:
            raise Diverged(
                f"{self._blame(overflow)}: lower the learning rate, or use bf16 instead of fp16; the checkpoints "
                "are kept"
            )
        starving = f"{line['data_wait']:.0%} of the time goes into waiting for images: raise --workers, or put the "
        checks = [*checks, ("starvation", line["data_wait"] > 0.3, f"{starving}images on a faster disk")]
        for check in checks:
            self.warn(step, *check)
        self.bar.set_postfix({name: format(line[name], form) for name, form in self.shown.items()})
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, and must not outlive its line

    def _blame(self, overflow: float) -> str:
        """Describe what first had NaN/Inf on any process: the gradients or parts of the loss, and in which step.

        Args:
            overflow: the first step whose gradients had NaN/Inf; equal on all processes.
        """
        assert self.broken is not None
        first = self.broken[None]
        steps = self.accelerator.gather(first).amin(0).tolist()  # inf if there was none
        step = min(steps)
        if overflow < step:
            return f"step {overflow:.0f} gave gradients that are NaN or infinite"
        parts = [name for name, at in zip(self.names, steps, strict=True) if at == step and name != "loss"]
        return f"step {step:.0f} gave a loss that is NaN or infinite, in {' and '.join(parts) or 'the sum'}"

    def warn(self, step: int, what: str, wrong: bool, text: str) -> None:
        """Print a warning and append it to ``warnings.txt``, once until the problem ends.

        Args:
            step: at which it was found.
            what: kind of problem.
            wrong: whether it exists now.
            text: the warning.
        """
        if wrong and what not in self.warned and self.accelerator.is_main_process:
            said = f"step {step}: {text}"
            self.bar.write(f"warning: {said}")
            with contextlib.suppress(OSError), self.path.with_name("warnings.txt").open("a") as file:
                file.write(said + "\n")
        (self.warned.add if wrong else self.warned.discard)(what)

    def _drop_lines_after(self, step: int) -> None:
        """Remove lines after the checkpoint that the run resumes from, and an incomplete last line."""
        whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        with atomic_write(self.path) as new:
            new.write_text("".join(line + "\n" for line in kept))


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GB: of tensors on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

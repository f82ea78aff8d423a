"""What one sees of a run while it runs: progress bar, ``metrics.jsonl``, Accelerate's trackers.

Metrics stay on the device and are added up there; the host reads them once a line.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from slotcon_hub import SlotConOutput

__all__ = ["Diverged", "Monitor"]

_SCALARS = [f.name for f in fields(SlotConOutput) if f.name != "usage"]


class Diverged(Exception):
    """The loss is no longer a number."""


class Monitor:
    """Collects the outputs of steps and writes a line of metrics every so often."""

    def __init__(
        self, folder: Path, accelerator: Accelerator, steps: range, batch_size: int, log_every: int
    ) -> None:
        """Open the progress bar of the steps that are to be taken.

        Args:
            folder: of the run.
            accelerator: whose processes the metrics are averaged over.
            steps: of the run, from the one it starts at.
            batch_size: of all processes, for images per second.
            log_every: steps a line.
        """
        self.path, self.accelerator = folder / "metrics.jsonl", accelerator
        self.batch_size, self.log_every = batch_size, log_every
        main = accelerator.is_main_process
        self.bar = tqdm(total=steps.stop, initial=steps.start, unit="step", disable=not main, dynamic_ncols=True)
        if main and self.path.exists():
            self._drop_lines_after(steps.start)
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    def add(self, out: SlotConOutput) -> None:
        """Add the output of a forward; nothing is read from the device."""
        self.names = [name for name in _SCALARS if getattr(out, name) is not None]
        values = torch.stack([getattr(out, name).detach().float() for name in self.names])
        self.sums = values if self.sums is None else self.sums + values
        self.usage = out.usage if self.usage is None else self.usage + out.usage
        self.forwards += 1

    def step(self, step: int, values: dict[str, float], saving: bool) -> bool:
        """Count a step; every ``log_every`` steps, after the last, and before a checkpoint, write a line.

        Args:
            step: steps behind us, this one included.
            values: further ones for the line.
            saving: a checkpoint is about to be written, which a loss that is no number must prevent.

        Returns:
            Whether a line was written.

        Raises:
            Diverged: the loss is not finite.
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
        self.sums: Tensor | None = None
        self.usage: Tensor | None = None
        self.forwards = self.steps = 0
        self.waited, self.since = 0.0, time.perf_counter()

    def _line(self, step: int, values: dict[str, float]) -> None:
        assert self.sums is not None
        assert self.usage is not None
        means = self.accelerator.reduce(self.sums / self.forwards, "mean").tolist()
        usage = self.accelerator.reduce(self.usage, "sum").cpu().double()
        seconds = time.perf_counter() - self.since
        share = usage / usage.sum().clamp(min=1)
        line = {
            "step": step,
            **dict(zip(self.names, means, strict=True)),
            **values,
            "dead_slots": int((usage == 0).sum()),
            "usage_entropy": float(-(share * share.clamp(min=1e-12).log()).sum() / math.log(len(share))),
            "images_per_second": self.steps * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        if not math.isfinite(line["loss"]):
            parts = ", ".join(f"{k}={line[k]}" for k in ("group_loss", "slot_loss", "image_loss") if k in line)
            raise Diverged(
                f"the loss is {line['loss']} ({parts}) at step {step}: lower --base-lr, or use bf16 in place of "
                "fp16; the checkpoints before it are kept"
            )
        if line["active_slots"] < 1.01 or line["usage_entropy"] < 0.01:
            self.bar.write(
                f"warning: collapse at step {step}: {line['active_slots']:.2f} active slots a view, "
                f"{line['dead_slots']} of {len(share)} without use since the last line"
            )
        self.bar.set_postfix(
            loss=f"{line['loss']:.3f}", active=f"{line['active_slots']:.1f}", dead=line["dead_slots"]
        )
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, and must not outlive its line

    def _drop_lines_after(self, step: int) -> None:
        """Forget what was measured after the checkpoint that the run continues from, and a line cut short."""
        whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        replacement = self.path.with_suffix(".new")
        replacement.write_text("".join(line + "\n" for line in kept))
        replacement.replace(self.path)

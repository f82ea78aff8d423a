"""A resumable run of any task.

On the CPU, on the same number of processes and threads, a resumed run has the losses and weights of one that never
stopped, bit for bit. On other numbers of them, data, order, schedules and steps are the same, but sums are rounded
differently, and random draws of the network (drop path) differ.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from slotcon_hub.files import remove_leftovers
from training.engine import checkpoint
from training.engine import folder as run_folder
from training.engine.batchnorm import restore_buffers
from training.engine.errors import RunError, explain_lost_workers, one_line_errors
from training.engine.metrics import Monitor
from training.engine.processes import init_distributed, make_accelerator, wrap
from training.engine.resuming import Refuse, check_settings, list_changes, resume_config
from training.engine.settings import RunSettings
from training.engine.signals import Stop
from training.engine.step import Step, seed_step

__all__ = ["Run", "Schedule", "Step"]


@dataclass(frozen=True)
class Schedule:
    """Length and checkpoints of a run, in optimisation steps."""

    total_steps: int
    save_every: int
    """Steps between checkpoints; there is always one at the end."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are never removed; 0 for none."""


class Run:
    """A run, from choosing its folder to its last step.

    ``Run(name, settings)``, :meth:`find_checkpoint`, :meth:`attach`, :meth:`open`, then the loop::

        with run.training():
            for step in run.steps(loader):
                step.set_lr(...)
                for batch in step.micro_batches():
                    loss = ...  # by run.model
                    step.backward(loss, {"loss": loss})
                step.update()
    """

    module: nn.Module
    """The trained module, unwrapped."""
    model: nn.Module
    """The trained module, wrapped by Accelerate."""
    optimizer: Any
    schedule: Schedule
    monitor: Monitor

    def __init__(self, name: str, settings: RunSettings) -> None:
        """Initialise the processes and Accelerate, and choose the folder; nothing is written.

        Args:
            name: of the recipe.
            settings: of the run.

        Raises:
            ValueError: a user error, in one sentence.
        """
        self.name, self.settings = name, settings
        self.processes = init_distributed(settings)
        self.folder = run_folder.choose(name, settings)
        self.accelerator = make_accelerator(settings, self.folder)
        self.claimed = False
        self.checkpoint: Path | None = None
        self.step = 0
        """Steps taken."""
        self.updates = 0
        """Steps that updated the weights: fp16 skips steps whose gradients overflow."""
        self.updated = True
        """Whether the last step updated the weights."""
        self.state: dict[str, Any] = {}
        """State of the task, plain values for JSON; saved in each checkpoint, and restored."""

    @property
    def fresh(self) -> bool:
        """Whether the run starts without a checkpoint of its own."""
        return self.checkpoint is None

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.schedule.total_steps

    @property
    def shard(self) -> dict[str, Any]:
        """Which micro-batches are this process's: arguments of :class:`training.data.plan.MicroBatches`."""
        accelerator, settings = self.accelerator, self.settings
        return {
            "seed": settings.seed,
            "rank": accelerator.process_index,
            "processes": accelerator.num_processes,
            "accumulation": settings.accumulation_steps,
        }

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, the only one that writes."""
        return self.accelerator.is_main_process

    def find_checkpoint(self) -> Path | None:
        """Lock an existing folder, and find the checkpoint to resume from, on the main process for all.

        Returns:
            None for a new run.

        Raises:
            ValueError: all checkpoints are damaged; raised on all processes.
        """
        if not self.settings.resume:
            return None
        problem = None
        if self.is_main:
            try:
                if self.folder.exists():
                    run_folder.lock(self.folder)
                    self.claimed = True
                self.checkpoint, problems = checkpoint.newest(self.folder)
                for reason in problems:
                    print(f"warning: {reason}", file=sys.stderr)
                place = self.checkpoint.name if self.checkpoint else "the start, since it has no checkpoint yet"
                print(f"{self.folder} resumes from {place}", file=sys.stderr)
            except ValueError as error:
                problem = str(error)
        found = broadcast_object_list([(self.checkpoint, self.claimed, problem)])[0]
        self.checkpoint, self.claimed, problem = found
        if problem:
            raise ValueError(problem)
        return self.checkpoint

    def attach(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        identity: Mapping[str, Any] | None = None,
        surroundings: Mapping[str, Any] | None = None,
        refuse: Refuse = lambda setting, then, now: None,
    ) -> None:
        """Set module and optimiser, load the checkpoint that was found, and wrap both by Accelerate.

        Args:
            module: on the CPU, not wrapped.
            optimizer: of its parameters.
            schedule: of the run.
            identity: plain values, besides the settings, that must not change when the run is resumed, such as a
                digest of the data.
            surroundings: plain values that affect rounding; a change is reported.
            refuse: called with a changed setting, its value in the checkpoint and its value now; returns an error
                message, or None for the default one.

        Raises:
            ValueError: the checkpoint is of another model or other settings.
        """
        self.module, self.schedule = module, schedule
        self.identity, self.surroundings = dict(identity or {}), dict(surroundings or {})
        resumed = checkpoint.load(self.checkpoint, module) if self.checkpoint else None
        self.model, self.optimizer = wrap(self.accelerator, module, optimizer)
        if resumed:
            self._restore(*resumed, refuse)

    def open(self, project: str, facts: Mapping[str, Any] | None = None) -> None:
        """Create the folder of a new run, write ``run.json``, and start the trackers.

        Args:
            project: name of the project in the trackers.
            facts: added to ``run.json``.

        Raises:
            ValueError: another run took the folder.
        """
        if not self.claimed:
            self.folder = run_folder.create(self.folder, named=self.settings.output is not None)
            self.accelerator.project_configuration.set_directories(str(self.folder))  # of the trackers
        if self.is_main:
            remove_leftovers(self.folder)
            step = None if self.fresh else self.step
            run_folder.describe(self.folder, self.name, self.settings, self.accelerator, dict(facts or {}), step)
        config = {"recipe": self.name, **asdict(self.settings), **self.identity}
        self.accelerator.init_trackers(
            project,
            # As text: TensorBoard takes no lists, and no surrogates of a path.
            config={k: str(v).encode("utf-8", "backslashreplace").decode() for k, v in config.items()},
            init_kwargs={"tensorboard": {"purge_step": self.step + 1}},  # drop events after the checkpoint
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Handle signals to stop, and exit with one sentence on errors that a user can fix."""
        with (
            Stop(self.accelerator) as self.stop,
            one_line_errors(
                RunError, OSError, interrupted="interrupted: --resume continues from the last checkpoint"
            ),
        ):
            with explain_lost_workers("--resume continues from the last checkpoint"):
                yield
            self._end()

    def _end(self) -> None:
        """Release DDP, and then end the trackers and the process group.

        If DDP is what releases the process group last, it waits for gloo's threads while it holds Python's lock
        (GIL), and a thread that still has tensors to release waits for that lock: torch 2.9.0 hangs.
        """
        self.model = self.module
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def warm_up_ddp(self, forward_backward: Callable[[], Any]) -> None:
        """Run a dummy forward and backward, so that DDP fixes its bucket order before resuming.

        DDP rebuilds its buckets after the first backward, which changes the rounding of sums over processes: a
        resumed run would differ in the last bits from one that never stopped.

        Args:
            forward_backward: forward and backward of :attr:`model` on inputs of the usual shape.
        """
        if self.accelerator.num_processes > 1:
            with restore_buffers(self.module):
                forward_backward()
            self.optimizer.zero_grad()

    def steps(
        self,
        loader: Iterable[Any],
        *,
        at_line: Callable[[], None] = lambda: None,
        **metrics: Any,
    ) -> Iterator[Step]:
        """Yield the remaining steps; after each, write its line of metrics and its checkpoint if due.

        Ends after the last step or a signal to stop, in both cases with a checkpoint.

        Args:
            loader: of the micro-batches of this process, starting with the next step.
            at_line: called after each line of metrics, on all processes.
            **metrics: ``diagnose`` and ``shown`` of :class:`Monitor`.

        Raises:
            Diverged: the loss or the gradients have NaN/Inf.
        """
        settings, steps = self.settings, range(self.step, self.schedule.total_steps)
        self.monitor = Monitor(
            self.folder, self.accelerator, steps, settings.batch_size, settings.log_every, **metrics
        )
        batches = iter(loader)
        for number in steps:
            seed_step(settings.seed, number, self.accelerator.process_index)
            step = Step(self, number + 1, batches)
            yield step
            assert step.updated, "step.update() was not called"
            saving = self.step % self.schedule.save_every == 0 or self.finished
            line = self.monitor.step(self.step, step.values, saving or step.evaluated)
            if line:
                at_line()
            stopping = line and self.stop.should_stop()  # at lines only, so that a resumed run has the same lines
            if saving or stopping:
                self.save()
            if stopping:
                break
        self.monitor.close()

    def print_resume_command(self) -> None:
        """Print where a stopped run is, and how to resume it."""
        command = f"the same command with --output {shlex.quote(str(self.folder))} --resume continues from there"
        print(f"stopped at step {self.step} of {self.schedule.total_steps}, and saved: {command}")

    def warn(self, what: str, wrong: bool, text: str) -> None:
        """Call :meth:`Monitor.warn` at the current step."""
        self.monitor.warn(self.step, what, wrong, text)

    def save(self) -> None:
        """Write a checkpoint of the run; a collective call of all processes."""
        if self.is_main:
            scaler = self.accelerator.scaler
            states = {
                "optimizer": self.optimizer.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else {},
            }
            progress = {
                "updates": self.updates,
                "updated": self.updated,
                "state": self.state,
                "surroundings": self._surroundings(),
                "settings": self._resume_config(),
            }
            keeping = {"keep": self.settings.keep, "keep_every": self.schedule.keep_every}
            checkpoint.save(self.folder, self.step, self.module, states, progress, **keeping)
        self.accelerator.wait_for_everyone()

    def _restore(self, states: dict[str, Any], progress: dict[str, Any], refuse: Refuse) -> None:
        """Restore optimiser, scaler and step; the weights are loaded already."""
        check_settings(progress["settings"], self._resume_config(), type(self.settings)(), refuse)
        if changed := list_changes(progress["surroundings"], self._surroundings()):
            note = f"note: resumed with {', '.join(changed)}: the run continues, but not bit for bit"
            self.accelerator.print(note, file=sys.stderr)
        self.optimizer.load_state_dict(states["optimizer"])
        if self.accelerator.scaler and states["scaler"]:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.step, self.updates, self.updated = progress["step"], progress["updates"], progress["updated"]
        self.state = progress["state"]

    def _resume_config(self) -> dict[str, Any]:
        return resume_config(self.settings, self.identity)

    def _surroundings(self) -> dict[str, Any]:
        """Facts besides the settings that affect rounding."""
        accelerator = self.accelerator
        return {
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads() if accelerator.device.type == "cpu" else None,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            **self.surroundings,
        }

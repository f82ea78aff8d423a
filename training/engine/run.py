"""A resumable run of any task: opened, resumed from a checkpoint, and stepped through.

On the CPU, a run that was resumed, however it had ended, has the losses and the weights of one that never stopped,
bit for bit, on as many processes and threads as before. On other numbers of them, the data and their order, the
schedules and the steps stay exactly the same; sums are rounded otherwise, and what a network draws (drop path)
depends on the process.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from training.engine import checkpoint
from training.engine import folder as run_folder
from training.engine.batchnorm import keeping_buffers
from training.engine.errors import RunError, naming_lost_workers, one_line_errors
from training.engine.metrics import Monitor
from training.engine.processes import init_distributed, make_accelerator, wrap
from training.engine.resuming import Refuse, check_settings, list_changes, resume_config
from training.engine.settings import RunSettings
from training.engine.signals import Stop
from training.engine.step import Step, seed_step

__all__ = ["Run", "Schedule", "Step"]


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and when it is saved; all in optimisation steps."""

    total_steps: int
    save_every: int
    """There is always a checkpoint at the end, too."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good; 0 for none."""


class Run:
    """A run, from the first look at its folder to its last step.

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
    """What is trained, unwrapped."""
    model: nn.Module
    """What is trained, wrapped by Accelerate."""
    optimizer: Any
    schedule: Schedule
    monitor: Monitor

    def __init__(self, name: str, settings: RunSettings) -> None:
        """Initialise the processes and Accelerate, and choose the folder; nothing is written.

        Args:
            name: of the recipe.
            settings: of the run.

        Raises:
            ValueError: something that the user can mend, in one sentence.
        """
        self.name, self.settings = name, settings
        self.processes = init_distributed(settings)
        self.folder = run_folder.choose(name, settings)
        self.accelerator = make_accelerator(settings, self.folder)
        self.claimed = False
        self.checkpoint: Path | None = None
        self.step = 0
        """Steps behind the run."""
        self.updates = 0
        """Those of them that moved the weights: fp16 skips a step whose gradients overflow."""
        self.updated = True
        """Whether the last step moved the weights."""
        self.state: dict[str, Any] = {}
        """Of the task, plain values for JSON; saved in each checkpoint, and restored."""

    @property
    def fresh(self) -> bool:
        """Whether the run starts here, rather than at a checkpoint of its own."""
        return self.checkpoint is None

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.schedule.total_steps

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which alone writes."""
        return self.accelerator.is_main_process

    def find_checkpoint(self) -> Path | None:
        """Claim the folder where it is there, and find the checkpoint to resume from, on the main process for all.

        Returns:
            None where the run starts anew.

        Raises:
            ValueError: all checkpoints are damaged; on all processes alike.
        """
        if not self.settings.resume:
            return None
        problem = None
        if self.is_main:
            try:
                if self.folder.exists():
                    run_folder.claim(self.folder)
                    self.claimed = True
                self.checkpoint, problems = checkpoint.newest(self.folder)
                for reason in problems:
                    print(f"warning: {reason}", file=sys.stderr)
                place = self.checkpoint.name if self.checkpoint else "the beginning, since it has no checkpoint yet"
                print(f"{self.folder} goes on from {place}", file=sys.stderr)
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
        """Take what is trained, load the checkpoint found, and wrap both for Accelerate.

        Args:
            module: on the CPU, not wrapped.
            optimizer: of its parameters.
            schedule: of the run.
            identity: plain values, beside the settings, that a resumed run must share with the one that it
                continues, such as a digest of the data.
            surroundings: plain values that the last bits depend on: where one is another, the run says so.
            refuse: called with a setting that differs, the checkpoint's value and this run's; a sentence that says
                more than the usual one, or None.

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
        """Make the folder of a new run, describe the run in it, and start the trackers.

        Args:
            project: under which the trackers file the run.
            facts: what ``run.json`` says of the run beside its settings.

        Raises:
            ValueError: another run took the folder.
        """
        if not self.claimed:
            self.folder = run_folder.create(self.folder, named=self.settings.output is not None)
            self.accelerator.project_configuration.set_directories(str(self.folder))  # of the trackers
        if self.is_main:
            for left in self.folder.glob(".*-*"):  # by a kill in the middle of an atomic write
                shutil.rmtree(left)
            step = None if self.fresh else self.step
            run_folder.describe(self.folder, self.name, self.settings, self.accelerator, dict(facts or {}), step)
        self.accelerator.init_trackers(
            project,
            config={
                "recipe": self.name,
                **{
                    k: str(v).encode("utf-8", "backslashreplace").decode() for k, v in asdict(self.settings).items()
                },
                **self.identity,
            },
            init_kwargs={"tensorboard": {"purge_step": self.step + 1}},  # what came after the checkpoint is void
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Heed signals to stop, and end in one sentence on errors that a user can mend."""
        with (
            Stop(self.accelerator) as self.stop,
            one_line_errors(
                RunError, OSError, interrupted="interrupted: --resume goes on from the last checkpoint"
            ),
        ):
            with naming_lost_workers("--resume goes on from the last checkpoint"):
                yield
            self.accelerator.end_training()

    def warm_up_ddp(self, forward_backward: Callable[[], Any]) -> None:
        """Take a dummy step before the first one, so that DDP fixes its bucket order before resuming.

        DistributedDataParallel arranges its buckets anew after the first backward, and their sums over processes
        with them; a resumed run would differ in the last bits from one that never stopped.

        Args:
            forward_backward: forward and backward of :attr:`model` on inputs of the usual shape.
        """
        if self.accelerator.num_processes > 1:
            with keeping_buffers(self.module):
                forward_backward()
            self.optimizer.zero_grad()

    def steps(
        self,
        loader: Iterable[Any],
        *,
        at_line: Callable[[], None] = lambda: None,
        **metrics: Any,
    ) -> Iterator[Step]:
        """Yield the steps that are left; after each, write its line and its checkpoint where they are due.

        Ends after the last step, or where the processes agreed to stop, with a checkpoint in either case.

        Args:
            loader: of the micro-batches of this process, from the next step on.
            at_line: called after each line of metrics, on all processes together.
            **metrics: ``diagnose`` and ``shown`` of :class:`Monitor`.

        Raises:
            Diverged: the loss or the gradients are NaN or infinite.
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
            stopping = line and self.stop.agreed()  # at lines alone: a resumed run writes the lines of any other
            if saving or stopping:
                self.save()
            if stopping:
                break
        self.monitor.close()

    def warn(self, what: str, wrong: bool, text: str) -> None:
        """Warn of trouble, as :meth:`Monitor.warn` does, at the current step."""
        self.monitor.warn(self.step, what, wrong, text)

    def save(self) -> None:
        """Write a checkpoint of the run; all processes must call this together."""
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
        """Continue from a checkpoint: optimiser, scaler and place; the weights are loaded already."""
        check_settings(progress["settings"], self._resume_config(), type(self.settings)(), refuse)
        if changed := list_changes(progress["surroundings"], self._surroundings()):
            note = f"note: resumed with {', '.join(changed)}: the numbers go on from here, but not bit for bit"
            self.accelerator.print(note, file=sys.stderr)
        self.optimizer.load_state_dict(states["optimizer"])
        if self.accelerator.scaler and states["scaler"]:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.step, self.updates, self.updated = progress["step"], progress["updates"], progress["updated"]
        self.state = progress["state"]

    def _resume_config(self) -> dict[str, Any]:
        return resume_config(self.settings, self.identity)

    def _surroundings(self) -> dict[str, Any]:
        """What the last bits depend on beside the settings."""
        accelerator = self.accelerator
        return {
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads() if accelerator.device.type == "cpu" else None,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            **self.surroundings,
        }

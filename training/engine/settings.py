"""Settings that every run has, whatever it trains; a task's recipe is a dataclass that inherits them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from slotcon_hub.settings import check_numbers

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Batch, precision, loading, checkpoints and metrics of a run.

    Raises:
        ValueError: for values that cannot work, naming the fix.
    """

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {
            "output",
            "resume",
            "workers",
            "threads",
            "log_every",
            "keep",
            "trackers",
            "mixed_precision",
        }
    )
    """Settings that may change when a run is resumed; a recipe adds its own."""

    batch_size: int = 512
    """Images in an optimisation step, over all processes and accumulation steps."""
    accumulation_steps: int = 1
    """Micro-batches that a process makes of its share of the batch."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the layers (losses stay in float32). auto takes what accelerate was told or configured for; else
    bf16 on GPUs that have it, fp16 on others, and no (float32) on the CPU."""
    seed: int = 0
    """Of initialisation, order and augmentation."""

    output: Path | None = None
    """Folder of the run; None makes runs/<recipe>-<date and time>."""
    resume: bool = False
    """Continue from the newest good checkpoint in --output; where there is none yet, start."""
    workers: int = 8
    """Processes that load images, for each training process."""
    threads: int | None = None
    """CPU threads of each process that trains on the CPU; None takes OMP_NUM_THREADS, else shares out the cores
    that may be used (affinity, quota), where accelerate would take one a process."""
    log_every: int = 10
    """Steps between two lines of metrics; a run asked to stop (SIGTERM, Ctrl-C) saves and ends at the next one."""
    keep: int = 2
    """Checkpoints kept, the newest ones."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Accelerate's trackers, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("accumulation_steps", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size} leaves BatchNorm no variance: use at least 2")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative; 0 loads in the training process")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output, the folder of the run to continue")

    def micro_batch(self, processes: int) -> int:
        """Images in one forward of one process.

        Raises:
            ValueError: the batch does not divide.
        """
        parts = processes * self.accumulation_steps
        if self.batch_size % parts:
            nearest = max(self.batch_size // parts, 1) * parts
            steps = f" of {self.accumulation_steps} accumulation steps" if self.accumulation_steps > 1 else ""
            raise ValueError(
                f"batch_size={self.batch_size} does not divide over {processes} processes{steps}: "
                f"use --batch-size {nearest}"
            )
        return self.batch_size // parts

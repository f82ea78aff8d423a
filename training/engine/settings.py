"""Settings of every run; a task's recipe is a dataclass that inherits them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from slotcon_hub.settings import check_numbers

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Batch, precision, loading, checkpoints and metrics of a run.

    Raises:
        ValueError: a value is invalid; the message names the fix.
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

    BF16_ON_CPU: ClassVar[bool] = False
    """Whether mixed_precision="auto" is bf16 on CPUs with instructions for it, else float32."""

    FIXED_SIZE: ClassVar[bool] = True
    """Whether all training inputs have one size, for which cuDNN then measures its algorithms on GPUs."""

    data: str | Path | None = None
    """Data set; a recipe says of what kind."""
    batch_size: int = 512
    """Images in an optimisation step, over all processes and accumulation steps."""
    accumulation_steps: int = 1
    """Micro-batches per process and step."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the layers (losses stay in float32). auto takes accelerate's option or configuration; else bf16
    on devices that support it (CPUs only in pre-training), fp16 on other GPUs, no (float32) on other CPUs."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""

    output: Path | None = None
    """Folder of the run; by default runs/<recipe>-<date and time>."""
    resume: bool = False
    """Continue from the newest intact checkpoint in --output; start if there is none."""
    workers: int = 8
    """Data-loading processes per training process."""
    threads: int | None = None
    """CPU threads of each process when training on the CPU; by default OMP_NUM_THREADS, else the usable cores
    (affinity, quota) divided by the processes."""
    log_every: int = 10
    """Steps between two lines of metrics; after SIGTERM or Ctrl-C, the run saves and ends at the next line."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Accelerate's trackers, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("accumulation_steps", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size} is too small for BatchNorm: use at least 2")
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

"""Initialise the processes of a run, and Accelerate with its settings."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object, parse_flag_from_env
from torch import nn

from slotcon_hub.cpu import keep_freed_memory, use_cores
from training.engine.launcher import told_precision, told_threads
from training.engine.settings import RunSettings

__all__ = ["any_size", "init_distributed", "make_accelerator", "wrap"]

PATIENCE = timedelta(hours=2)  # for processes that wait for the main one, which opens the data first
DIVIDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Variables of accelerate's launcher for settings that shard a model over processes."""


def init_distributed(settings: RunSettings) -> PartialState:
    """Initialise the process group of a launch, and for training on the CPU divide its cores among the processes.

    Raises:
        ValueError: the number of processes is not that of the launch, accelerate is set to shard the model, or the
            batch does not divide over the processes.
    """
    for variable, what in DIVIDING.items():
        if parse_flag_from_env(variable):
            raise ValueError(
                f"accelerate is set to {what}, but every process must have the whole model: launch with "
                "--multi_gpu, and if memory is short, use gradient checkpointing or more --accumulation-steps"
            )
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    if int(os.environ.get("WORLD_SIZE", 1)) != processes.num_processes:
        raise ValueError("several processes were launched without GPUs for them: set ACCELERATE_USE_CPU=true")
    if processes.device.type == "cpu":
        keep_freed_memory()
        use_cores(settings.threads or told_threads())
    if processes.device.type == "cuda":  # no TF32 for matrix products (torch's default): losses are in float32
        torch.backends.cudnn.benchmark = settings.FIXED_SIZE
    settings.micro_batch(processes.num_processes)
    return processes


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Within the block, cuDNN does not measure its algorithms, which it would do anew for each size of input."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_accelerator(settings: RunSettings, folder: Path | None = None) -> Accelerator:
    """Create the Accelerator of a run, with its precision.

    Args:
        settings: of the run.
        folder: of the run, for its trackers.

    Raises:
        ValueError: a tracker is not installed, or the precision or Accelerate's own settings do not work here.
    """
    missing = set(settings.trackers) - {str(t) for t in get_available_trackers()}
    if missing:
        raise ValueError(f"tracker {', '.join(sorted(missing))} is not installed: install it or drop it")
    accelerator = Accelerator(
        mixed_precision=_precision(settings),
        log_with=list(settings.trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError("fp16 needs a GPU: use --mixed-precision bf16 or no")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accelerate is set to accumulate gradients: set that to 1, and use --accumulation-steps")
    return accelerator


def _precision(settings: RunSettings) -> str:
    """Precision of the settings, else of accelerate's settings, else the best that all devices support."""
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if told := told_precision():
        return told
    if PartialState().device.type != "cuda":
        return "bf16" if settings.BF16_ON_CPU and all(gather_object([_cpu_has_bf16()])) else "no"
    return "bf16" if all(gather_object([torch.cuda.is_bf16_supported(including_emulation=False)])) else "fp16"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 matrices; others emulate them slowly."""
    cpu: Any = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def wrap(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Wrap model and optimiser by Accelerate, on its device."""
    with warnings.catch_warnings():  # Accelerate uses the older name of this DDP option
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return accelerator.prepare(model, optimizer)

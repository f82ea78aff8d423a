"""What trains a recipe: the processes that meet for it, Accelerate, and the network made ready."""

import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from torch import nn

from slotcon_hub import SlotCon, distributed
from slotcon_hub.cpu import keep_freed_memory, use_cores
from slotcon_hub.export.teacher import backbone_model, prototype_model
from slotcon_hub.models.backbone import create_backbone
from training.engine.errors import first_line
from training.engine.launcher import told_precision, told_threads
from training.pretraining.recipes import Recipe

__all__ = ["accelerate", "build", "meet", "wrap"]

PATIENCE = timedelta(hours=2)  # of processes that wait for what the main one does first, such as opening data
DIVIDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Variables that accelerate's launcher sets where its settings divide a model over processes."""


def meet(recipe: Recipe) -> PartialState:
    """Meet the processes of this run, and share out the CPU's cores where that is what trains.

    Raises:
        ValueError: they are not as many as were launched, accelerate is set to divide the model over them, or the
            batch does not divide over them.
    """
    for variable, what in DIVIDING.items():
        if parse_flag_from_env(variable):
            raise ValueError(
                f"accelerate is set to {what}, but here every process has the whole model: launch with "
                "--multi_gpu, and if memory is short, use --grad-checkpointing or more --accumulation-steps"
            )
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    if int(os.environ.get("WORLD_SIZE", 1)) != processes.num_processes:
        raise ValueError("several processes were launched without GPUs for them: set ACCELERATE_USE_CPU=true")
    if processes.device.type == "cpu":
        keep_freed_memory()
        use_cores(recipe.threads or told_threads())
    if processes.device.type == "cuda":  # as the published code; convolutions take TF32 by torch's default
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    recipe.micro_batch(processes.num_processes)
    return processes


def accelerate(recipe: Recipe, folder: Path | None = None) -> Accelerator:
    """Make what runs the recipe on its devices, in its precision.

    Args:
        recipe: of the run.
        folder: of the run, for its trackers.

    Raises:
        ValueError: a tracker is not installed, or the precision or Accelerate's own settings do not go with it.
    """
    missing = set(recipe.trackers) - {str(t) for t in get_available_trackers()}
    if missing:
        raise ValueError(f"tracker {', '.join(sorted(missing))} is not installed: install it or drop it")
    accelerator = Accelerator(
        mixed_precision=_precision(recipe),
        log_with=list(recipe.trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError("fp16 needs a GPU: use --mixed-precision bf16 or no")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accelerate is set to accumulate gradients: set that to 1, and use --accumulation-steps")
    return accelerator


def _precision(recipe: Recipe) -> str:
    """The precision that the recipe names, or the user of the launcher, or that goes with all the devices."""
    if recipe.mixed_precision != "auto":
        return recipe.mixed_precision
    if told := told_precision():
        return told
    if PartialState().device.type != "cuda":
        return "no"
    return "bf16" if all(gather_object([torch.cuda.is_bf16_supported(including_emulation=False)])) else "fp16"


def build(recipe: Recipe, processes: PartialState, *, pretrained: bool = False) -> SlotCon:
    """Build the model of a recipe, and make sure that it can be trained on its views and exported.

    Args:
        recipe: of the run.
        processes: of the run.
        pretrained: load the weights that the backbone's name stands for, into student and teacher.

    Raises:
        ValueError: it cannot.
    """
    set_seed(recipe.seed)
    slotcon = SlotCon(create_backbone(recipe.backbone, recipe.view_size, pretrained=pretrained), recipe.slotcon)
    backbone_model(slotcon)
    side = recipe.view_size
    try:
        prototype_model(slotcon)(torch.zeros(1, 3, side, side))
    except (AssertionError, IndexError, RuntimeError) as error:
        refused = f"{recipe.backbone} cannot take images of {side} x {side} pixels"
        raise ValueError(f"{refused} ({first_line(error)}): take another --backbone") from None
    if recipe.channels_last:
        slotcon.to(memory_format=torch.channels_last)
    if processes.num_processes > 1:
        distributed.synchronize_batchnorm(slotcon, processes.device.type)
    if recipe.grad_checkpointing:
        _recompute(slotcon.student.backbone, recipe.backbone)
    if recipe.compile:
        _compile(slotcon, processes.device)
    return slotcon


def wrap(accelerator: Accelerator, slotcon: SlotCon, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Return model and optimiser as Accelerate trains them, on its device."""
    with warnings.catch_warnings():  # Accelerate knows this option of DDP by its older name alone
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return accelerator.prepare(slotcon, optimizer)


def _recompute(backbone: Any, name: str) -> None:
    """Make a student's backbone keep few of its activations, and compute them again in the backward."""
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise ValueError(
            f"timm has no gradient checkpointing for {name}: drop --grad-checkpointing, and use more "
            "--accumulation-steps"
        ) from None


def _compile(slotcon: SlotCon, device: torch.device) -> None:
    """Compile student and teacher when they are first called, in place: the names of the parameters stay.

    The slots are left as they are, since every batch has another number of them.
    """
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # of whatever torch compiles with
        raise ValueError(f"torch cannot compile here ({first_line(error)}): drop --compile, or mend that") from None
    slotcon.student.compile()
    slotcon.teacher.compile()

"""Build the network of a recipe: pretrained weights, compilation, gradient checkpointing."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from slotcon_hub import SlotCon, distributed
from slotcon_hub.export.teacher import backbone_model, prototype_model
from slotcon_hub.models.backbone import create_backbone
from training.engine.errors import first_line
from training.engine.memory_format import make_channels_last
from training.engine.pooling import pool_before_relu
from training.pretraining.recipes import Recipe

__all__ = ["build"]


def build(recipe: Recipe, processes: PartialState, *, pretrained: bool = False) -> SlotCon:
    """Build the model of a recipe, and check that it can be trained on its views and exported.

    Args:
        recipe: of the run.
        processes: of the run.
        pretrained: load the pretrained weights of the backbone's name into student and teacher.

    Raises:
        ValueError: it cannot be trained or exported.
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
        make_channels_last(slotcon, processes.device)
    if not recipe.compile:  # which does so itself
        for network in (slotcon.student, slotcon.teacher):
            pool_before_relu(network.backbone)
    if processes.num_processes > 1:
        distributed.synchronize_batchnorm(slotcon, processes.device.type)
    if recipe.grad_checkpointing:
        _recompute(slotcon.student.backbone, recipe.backbone)
    if recipe.compile:
        _compile(slotcon, processes.device)
    return slotcon


def _recompute(backbone: Any, name: str) -> None:
    """Turn on gradient checkpointing in a student's backbone."""
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise ValueError(
            f"timm has no gradient checkpointing for {name}: drop --grad-checkpointing, and use more "
            "--accumulation-steps"
        ) from None


def _compile(slotcon: SlotCon, device: torch.device) -> None:
    """Compile student and teacher in place at their first call; names of parameters are unchanged.

    The slot loss is not compiled, since every batch has another number of slots.
    """
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # any error of torch's compiler backends
        raise ValueError(
            f"torch cannot compile here ({first_line(error)}): drop --compile, or fix the compiler"
        ) from None
    slotcon.student.compile()
    slotcon.teacher.compile()

"""A SlotCon small enough for loops and for several processes, and a batch for it."""

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from slotcon_hub import SlotCon, SlotConConfig, SlotConOutput
from slotcon_hub.models.saving import save_model
from slotcon_hub.weights import store

TINY = SlotConConfig(num_prototypes=6, hidden_dim=16, out_dim=8)

Batch = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


class TinyBackbone(nn.Module):
    """A map of 6 channels and stride 8, with a norm that does not mix samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).tanh()


def make_batch(images: int = 4, size: int = 32, dtype: torch.dtype = torch.float64) -> Batch:
    """Views, boxes and flips of random images."""
    views = tuple(torch.randn(images, 3, size, size, dtype=dtype) for _ in range(2))
    boxes = tuple(
        torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.0, 0.0, 0.5, 1.0]] * images, dtype=dtype)[:images] for _ in range(2)
    )
    flips = torch.arange(images) % 2 == 0, torch.arange(images) % 3 == 0
    return views, boxes, flips


def make_model(config: SlotConConfig = TINY) -> SlotCon:
    """A float64 model whose student and teacher differ, as they do after a step."""
    model = SlotCon(TinyBackbone(), config).double()
    students = [model.student] if model.image_loss is None else [model.student, model.image_loss.student]
    with torch.no_grad():
        for p in (p for student in students for p in student.parameters()):
            p.add_(torch.randn_like(p) * 0.05)
    return model


def make_swin(size: int) -> nn.Module:
    """A Swin, whose maps have their channels last, as small as it gets."""
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "num_classes": 0, "global_pool": ""}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=size, dynamic_img_size=True, **small)


@torch.no_grad()
def shaken(net: Any, std: float) -> Any:
    """The network with noise on its parameters and statistics that are not the defaults."""
    for p in net.parameters():
        p.add_(torch.randn_like(p) * std)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(17)
    return net


def fill_store(*names: str, seed: int = 0) -> dict[str, Any]:
    """Put a shaken network under each of these names, and return them."""
    torch.manual_seed(seed)
    nets = {name: shaken(timm.create_model(name.split(".")[0]), 0.02).eval() for name in names}
    store.add({name: partial(save_model, net, input_size=64) for name, net in nets.items()})
    return nets


def output(**parts: float) -> SlotConOutput:
    values = {"loss": 2.0, "group_loss": 3.0, "slot_loss": 1.0, "active_slots": 3.0, "positive_pairs": 2.0}
    values |= {"excluded_terms": 4.0, **parts}
    usage = torch.tensor([5, 0, 4, 3])
    return SlotConOutput(**{k: torch.tensor(v) for k, v in values.items()}, image_loss=None, usage=usage)

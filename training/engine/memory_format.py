"""The memory format of convolutional networks: channels_last where it works."""

import torch
from torch import nn

__all__ = ["make_channels_last", "memory_format"]


def make_channels_last(network: nn.Module, device: torch.device) -> None:
    """Give a network the format in which convolutions are fastest, unless training in it is fatal on the device."""
    if device.type != "cpu" or not _corrupts_memory(network):
        network.to(memory_format=torch.channels_last)


def memory_format(network: nn.Module) -> torch.memory_format:
    """The format of a network's convolutions, which its images should have too."""
    strided = any(p.dim() == 4 and not p.is_contiguous() for p in network.parameters())
    return torch.channels_last if strided else torch.contiguous_format


def _corrupts_memory(network: nn.Module) -> bool:
    """Whether oneDNN writes where it must not in the backward of some layer in channels_last.

    Seen in torch 2.9.0 to 2.14.1, with up to 15 channels; re-parametrised stems, as FastViT's and RepVGG's, have 3.
    """
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    return any(c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 16 for c in convolutions)

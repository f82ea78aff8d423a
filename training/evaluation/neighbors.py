"""Exact nearest neighbours by cosine, in chunks: a matrix product, and little beside it.

Dimensions: Q queries, M entries of the memory, C channels, k neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["nearest"]

CHUNK = 2**14  # entries that are compared at a time
BLOCK = 32  # entries of which the most similar one stands for all


def nearest(
    queries: Tensor, memory: Tensor, k: int, ends: Sequence[int] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Find of each query the k most similar entries of the memory, of equally similar ones the first.

    The k best of a chunk are in those k blocks whose best entries are best: so almost all that is done beside the
    product is to take the maximum of each block. Beside the arguments it needs Q x 16,384 values.

    Args:
        queries: float32 Q x C, of length 1.
        memory: float32 M x C, of length 1.
        k: neighbours; a memory of fewer entries gives all of them.
        ends: ascending numbers of entries; each, such as 1,000, asks for the neighbours among the first 1,000
            alone. By default all M.

    Returns:
        For each end the similarities, Q x k, the largest first, and the entries, int64 Q x k.
    """
    ends = [len(memory)] if ends is None else ends
    best = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    found, start = [], 0
    for end in ends:
        for first in range(start, end, CHUNK):
            last = min(first + CHUNK, end)
            similarities = queries @ memory[first:last].T
            both = torch.cat([best, _contenders(similarities, first, best, k)], dim=1)
            best = _largest(both, min(k, last))
        found.append(_unpack(best))
        start = max(start, end)
    return found


def _contenders(similarities: Tensor, first: int, best: Tensor, k: int) -> Tensor:
    """The entries of a chunk, packed, that can be among the k best: those of at most k blocks.

    Args:
        similarities: Q x chunk.
        first: number of the chunk's first entry.
        best: what was found before, packed, the best first.
        k: neighbours.
    """
    width = similarities.shape[1]
    if missing := -width % BLOCK:
        similarities = F.pad(similarities, (0, missing), value=-torch.inf)
    padded = similarities.unflatten(1, (-1, BLOCK))
    tops = padded.amax(2)
    if best.shape[1] == k:  # an entry must be more similar than the last of these
        k = min(k, int((tops > _unpack(best[:, -1:])[0]).sum(1).amax()))
    blocks = _unpack(_largest(_pack(tops, torch.arange(tops.shape[1], device=tops.device)), k))[1]
    values = padded.gather(1, blocks[:, :, None].expand(-1, -1, BLOCK))
    numbers = blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)
    packed = _pack(values, numbers + first).masked_fill(numbers >= width, torch.iinfo(torch.long).min)
    return packed.flatten(1)


def _largest(packed: Tensor, k: int) -> Tensor:
    return packed.topk(min(k, packed.shape[1]), dim=1).values


def _pack(values: Tensor, numbers: Tensor) -> Tensor:
    """Float32 values and numbers below 2^32 as integers that are ordered by value, then by lower number."""
    bits = (values + 0.0).view(torch.int32)  # there is a -0.0 otherwise
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) | (0xFFFFFFFF - numbers)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (packed >> 32).int()
    values = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return values, 0xFFFFFFFF - (packed & 0xFFFFFFFF)

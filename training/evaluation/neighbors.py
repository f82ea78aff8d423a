"""Exact nearest neighbours by cosine similarity, in chunks, at about the cost of the matrix product.

Dimensions: Q queries, M entries of the memory, C channels, k neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["nearest"]

CHUNK = 2**14  # memory entries per matrix product
BLOCK = 32  # entries per block; a block is ranked by its maximum


def nearest(
    queries: Tensor, memory: Tensor, k: int, ends: Sequence[int] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Find the k most similar memory entries of each query; ties by lower index.

    The k best entries of a chunk are in the k blocks with the largest maxima, so only those blocks are searched.
    Needs Q x 16,384 values of memory besides the arguments.

    Args:
        queries: float32 Q x C, L2-normalised.
        memory: M x C, L2-normalised, float32; float16 is converted part by part, and normalised again.
        k: neighbours; at most M are returned.
        ends: ascending sizes of the memory: for each, neighbours are searched among the first that many entries.
            None: all M.

    Returns:
        For each end the similarities, Q x k, descending, and the entries, int64 Q x k.
    """
    ends = [len(memory)] if ends is None else ends
    best = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    found, start = [], 0
    for end in ends:
        for first in range(start, end, CHUNK):
            last = min(first + CHUNK, end)
            part = memory[first:last]
            if part.dtype != queries.dtype:
                part = F.normalize(part.to(queries.dtype))  # rounding has changed their norms
            similarities = queries @ part.T
            both = torch.cat([best, _contenders(similarities, first, best, k)], dim=1)
            best = _largest(both, min(k, last))
        found.append(_unpack(best))
        start = max(start, end)
    return found


def _contenders(similarities: Tensor, first: int, best: Tensor, k: int) -> Tensor:
    """Return the packed entries of a chunk that can be among the k best: those of at most k blocks.

    Args:
        similarities: Q x chunk.
        first: index of the chunk's first entry.
        best: packed results of earlier chunks, best first.
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
    """Pack float32 values and indices below 2^32 into int64 that sort by value, then by lower index."""
    bits = (values + 0.0).view(torch.int32)  # turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) | (0xFFFFFFFF - numbers)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (packed >> 32).int()
    values = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return values, 0xFFFFFFFF - (packed & 0xFFFFFFFF)

"""Communication between the processes of a run: ``python -m training.tools.communication``.

Collectives are counted as rings: a process sends 2 (N - 1) / N S in an all-reduce of S bytes, and (N - 1) S in an
all-gather of S bytes from each. Sizes are exact. Times are estimates from assumed bandwidths, and a latency of each
collective that grows with log2 N.

Dimensions: B images a process, K prototypes, D embedding channels, N processes.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro
from rich.table import Column, Table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slotcon_hub import SlotCon, SlotConConfig
from training.engine.cli import cli
from training.engine.words import show

__all__ = ["Machine", "Traffic", "traffic"]

COCO = 118_287
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in one step, and its number of collectives."""

    gradients: float
    """All-reduce of the student's and the predictor's gradients, float32."""
    keys: float
    """All-gather of the active slots of both views of the teacher, float32; and of the views of the image loss."""
    batchnorm: float
    """Statistics of every BatchNorm, forward of student and teacher and backward of the student."""
    rest: float
    """Counts of active slots, and the centre."""
    dense_keys: float
    """Bytes of all slots instead of the active ones; not sent."""
    collectives: int
    """A gradient bucket of 25 MiB counts as one."""

    @property
    def total(self) -> float:
        """Sum of all sent bytes."""
        return self.gradients + self.keys + self.batchnorm + self.rest


def traffic(slotcon: SlotCon, *, batch: int, active: float, processes: int) -> Traffic:
    """Compute the traffic of a step.

    Args:
        slotcon: the model; the meta device suffices.
        batch: B.
        active: slots that are active in a view, at most one for each cell of the map.
        processes: N.
    """
    if processes == 1:
        return Traffic(0, 0, 0, 0, 0, 0)
    reduce, gather = 2 * (processes - 1) / processes, processes - 1
    weights = FLOAT * sum(p.numel() for p in slotcon.parameters() if p.requires_grad)
    trained: list[nn.Module] = [slotcon.student, slotcon.predictor]
    followers: list[nn.Module] = [slotcon.teacher]
    if (image := slotcon.image_loss) is not None:
        trained += [image.student, image.predictor]
        followers += [image.teacher]
    norms = [m.num_features for part in trained for m in _norms(part)]
    teacher = [m.num_features for part in followers for m in _norms(part)]
    statistics = gather * sum(2 * c + 1 for c in norms + teacher) + reduce * sum(2 * c for c in norms)
    prototypes, dim = slotcon.config.num_prototypes, slotcon.config.out_dim
    buckets = math.ceil(weights / 25 / 2**20)
    return Traffic(
        gradients=reduce * weights,
        keys=gather * 2 * FLOAT * batch * (active + (image is not None)) * dim,
        batchnorm=2 * FLOAT * statistics,  # each for two views, or directions
        rest=gather * 4 * 8 + reduce * FLOAT * prototypes,
        dense_keys=gather * 2 * FLOAT * batch * prototypes * dim,
        collectives=buckets + 2 + 2 * (2 * len(norms) + len(teacher)) + 2,
    )


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@dataclass(frozen=True)
class Machine:
    """Weak scaling of a run: each GPU has the same number of images."""

    backbone: str = "slotcon_r50"
    """Any timm model that SlotCon takes."""
    slotcon: Annotated[SlotConConfig, tyro.conf.arg(name="")] = field(default_factory=SlotConConfig)
    batch: int = 128
    """Images per GPU."""
    active: float = 7.0
    """Active slots per view; 7 is the paper's figure for COCO."""
    image_seconds: float = 143 * 8 / COCO
    """Seconds of computation per image; the default is from the paper's 143 s per epoch of COCO on 8 x RTX 3090."""
    gpus_per_node: int = 8
    """GPUs that share the faster links."""
    node_bandwidth: float = 20.0
    """GB/s that a GPU sends inside a node."""
    network_bandwidth: float = 10.0
    """GB/s that a node sends to the next."""
    latency: float = 20.0
    """Microseconds per collective and doubling of the processes."""

    def seconds(self, sent: Traffic, processes: int) -> float:
        """Time of the communication, if none of it overlaps with computation."""
        bandwidth = self.node_bandwidth if processes <= self.gpus_per_node else self.network_bandwidth
        waits = sent.collectives * math.log2(processes) * self.latency * 1e-6
        return sent.total / bandwidth / 1e9 + waits


def main() -> None:
    """Print the table."""
    machine = cli(Machine, prog="python -m training.tools.communication", description=__doc__)
    with torch.device("meta"):
        slotcon = SlotCon(machine.backbone, machine.slotcon)
    title = f"MB that a GPU sends in a step: {machine.backbone}, K = {machine.slotcon.num_prototypes}"
    columns = ("GPUs", Column("gradients", no_wrap=True), "keys", "all slots", "norms")
    table = Table(*columns, "s to send", "s a step", "s an epoch", title=title, title_justify="left")
    for processes in (2**i for i in range(10)):
        sent = traffic(slotcon, batch=machine.batch, active=machine.active, processes=processes)
        sizes = (sent.gradients, sent.keys, sent.dense_keys, sent.batchnorm)
        exchange = machine.seconds(sent, processes)
        step = machine.batch * machine.image_seconds + exchange
        table.add_row(
            str(processes),
            *(f"{size / 1e6:,.1f}" if size < 1e9 else f"{size / 1e6:,.0f}" for size in sizes),
            f"{exchange:.3f}",
            f"{step:.2f}",
            f"{COCO / (processes * machine.batch) * step:.1f}",
        )
    show(table)
    show(
        "Keys: the active slots, instead of all; an epoch: of COCO. "
        f"Assumed: {machine.batch} images a GPU, {machine.active:g} active slots a view, "
        f"{1000 * machine.image_seconds:.1f} ms of computation an image, {machine.node_bandwidth:g} GB/s a GPU "
        f"inside a node of {machine.gpus_per_node} and {machine.network_bandwidth:g} GB/s between nodes, "
        f"{machine.latency:g} us a collective and doubling of the GPUs, nothing overlapped with computation. "
        "The paper used batches of 256 to 1024."
    )


if __name__ == "__main__":
    main()

"""The parts of a training step: milliseconds, FLOPs, memory, and communication."""

import gc
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from slotcon_hub import SlotCon
from training.data.views import TwoViews
from training.engine.memory_format import memory_format
from training.engine.metrics import peak_memory
from training.engine.optim import make_optimizer
from training.engine.processes import init_distributed, make_accelerator, wrap
from training.engine.words import show
from training.pretrain import LAYERS, forward_backward, to_device
from training.pretraining.model import build
from training.pretraining.pairs import ViewPairs, collate
from training.pretraining.recipes import RECIPES, Recipe
from training.tools.benchmark.data import InMemory, make_images
from training.tools.benchmark.memory import LiveBytes
from training.tools.communication import COCO, traffic

__all__ = ["benchmark", "describe_machine"]

WARMUP = 3  # steps before the measurement
REPORTED = (  # supplementary A.1: global batch, seconds per epoch of COCO, GB per GPU
    ("SlotCon, 8 x RTX 3090, as reported", 1024, 143, 16.0),
    ("PixPro, likewise", 1024, 139, 15.1),
    ("DenseCL, likewise", 256, 166, 7.9),
)


def benchmark(
    recipe: str = "coco_800ep",
    batch_sizes: tuple[int, ...] = (128,),
    num_prototypes: tuple[int, ...] = (256,),
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None,
    grad_checkpointing: bool = False,
    compile: bool = False,
    steps: int = 10,
    gpus: int | None = None,
    output: Path | None = None,
) -> None:
    """Print the cost of each part of a training step, and the time of a COCO epoch at this speed.

    The device is synchronised after each part, so their sum may exceed the step, which is measured without
    synchronisation. "GB of tensors" counts all live storages at the peak of a step; "GB a process" includes the
    allocator's overhead. Data loading is excluded. Launched by accelerate, all processes run the step.

    Args:
        recipe: name of the recipe with the network and views.
        batch_sizes: images per process; each is measured.
        num_prototypes: likewise.
        mixed_precision: by default bf16 on a GPU, and no on a CPU.
        grad_checkpointing: recompute the student's activations in the backward.
        compile: with torch.compile.
        steps: number of measured steps.
        gpus: for the communication; by default the number of processes, or 8 for a single process.
        output: JSON file for the tables.

    Raises:
        ValueError: a number is too small, or there is no such recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    gpus = gpus or (launched if launched > 1 else 8)
    if min(*batch_sizes, *num_prototypes, gpus) < 2 or steps < 1:
        raise ValueError("steps must be at least 1; batch sizes, numbers of prototypes and GPUs at least 2")
    results: list[Result] = []
    published = RECIPES[recipe][1]
    for prototypes, batch in itertools.product(num_prototypes, batch_sizes):
        setting = replace(
            published,
            slotcon=replace(published.slotcon, num_prototypes=prototypes),
            batch_size=batch * launched,
            mixed_precision=mixed_precision or ("bf16" if torch.cuda.is_available() else "no"),
            grad_checkpointing=grad_checkpointing,
            compile=compile,
            trackers=(),
        )
        processes = init_distributed(setting)
        try:
            results.append(_measure(setting, processes, batch, steps, gpus))
        except torch.OutOfMemoryError:
            show(f"{batch} images with K = {prototypes} do not fit into the GPU's memory")
            continue
        if processes.is_main_process:
            _show_parts(results[-1])
    if results and processes.is_main_process:
        _show_all(results, processes.num_processes, gpus)
        if output:
            output.write_text(json.dumps([_row(result, processes.num_processes) for result in results], indent=2))


@dataclass(frozen=True)
class Result:
    """Measurements of a recipe."""

    recipe: Recipe
    batch: int
    """Images per process."""
    parts: dict[str, float]
    """Milliseconds of each part, with the device synchronised at its end."""
    step: float
    """Milliseconds of a step, without synchronisation between parts."""
    arithmetic: dict[str, float]
    """FLOPs of the convolutions and matrix products of each part."""
    rate: float
    """FLOP/s of a large matrix product."""
    memory: float
    """Peak GB of the process."""
    live: float
    """Peak GB of live tensors in a step, equal on any device."""
    active: float
    """Active slots per view."""
    sent: float
    """Bytes that a process sends in a step."""
    keys: tuple[float, float]
    """Bytes of the slots sent, and of all slots."""
    machine: str


def _measure(recipe: Recipe, processes: PartialState, batch: int, steps: int, gpus: int) -> Result:
    device = processes.device
    if device.type == "cuda":
        gc.collect()  # Accelerate leaves a model in a cycle of references
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trained = _Trained(recipe, processes, batch)
    for _ in tqdm(range(WARMUP), "warming up", leave=False, disable=not processes.is_main_process):
        active = trained.step()

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * time.perf_counter()

    start = clock()
    for _ in tqdm(range(steps), "steps", leave=False, disable=not processes.is_main_process):
        trained.step()
    whole = (clock() - start) / steps
    memory = peak_memory(device)
    laps = [trained.parts(clock) for _ in range(steps)]
    with LiveBytes(trained.slotcon, *trained.views.values(), *trained.momentum()) as tensors:
        trained.step()
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        arithmetic = trained.parts(counter.get_total_flops)
    sent = traffic(trained.slotcon, batch=batch, active=float(active), processes=gpus)
    return Result(
        recipe=recipe,
        batch=batch,
        parts={part: median(lap[part] for lap in laps) for part in laps[0]},
        step=whole,
        arithmetic=arithmetic,
        rate=_matrix_rate(device, LAYERS[trained.accelerator.mixed_precision], clock),
        memory=memory,
        live=tensors.peak / 1e9,
        active=float(active),
        sent=sent.total,
        keys=(sent.keys, sent.dense_keys),
        machine=describe_machine(device),
    )


class _Trained:
    """A model that is trained on one batch repeatedly, as in pre-training."""

    def __init__(self, recipe: Recipe, processes: PartialState, batch: int) -> None:
        self.recipe = recipe
        self.accelerator: Accelerator = make_accelerator(recipe)
        self.slotcon: SlotCon = build(recipe, processes).train()
        optimizer = make_optimizer(self.slotcon, recipe.optimizer, weight_decay=recipe.weight_decay)
        self.model, self.optimizer = wrap(self.accelerator, self.slotcon, optimizer)
        pairs = ViewPairs(InMemory(make_images(2 * recipe.view_size, 16)), TwoViews(recipe.view_size), seed=0)
        views = collate([pairs[0, index % 16] for index in range(batch)])
        cuda = processes.device.type == "cuda"  # where the loader returns pinned memory
        self.views = {key: v.pin_memory() if cuda else v for key, v in views.items() if isinstance(v, Tensor)}

    def step(self, lap: Callable[[str], None] = lambda part: None) -> Tensor:
        """Run a step, and call ``lap`` with the name of each part at its end; return the active slots per view."""
        inputs = to_device(self.views, self.accelerator, memory_format(self.slotcon))
        lap("views to the device, colours")
        self.slotcon.update_teacher(0.99)
        lap("EMA update of the teacher")
        recompute = self.recipe.grad_checkpointing
        out = forward_backward(self.accelerator, self.model, self.slotcon, inputs, recompute=recompute, lap=lap)
        get_total_norm([p.grad for p in self.slotcon.parameters() if p.grad is not None])
        lap("gradient norm")
        self.optimizer.step()
        self.optimizer.zero_grad()
        lap("optimiser")
        return out.active_slots

    def momentum(self) -> list[Tensor]:
        """Tensors of the optimiser's state."""
        state = self.optimizer.optimizer.state.values()
        return [value for values in state for value in values.values() if isinstance(value, Tensor)]

    def parts(self, read: Callable[[], float]) -> dict[str, float]:
        """Run a step, and return by how much a meter rose in each part."""
        laps = _Laps(read)
        networks: dict[str, nn.Module] = {"student": self.slotcon.student, "teacher": self.slotcon.teacher}
        hooks = [n.register_forward_pre_hook(partial(laps.lap, "slots and losses")) for n in networks.values()]
        hooks += [n.register_forward_hook(partial(laps.lap, f"{name}, forward")) for name, n in networks.items()]
        self.step(laps.lap)
        for hook in hooks:
            hook.remove()
        return laps.parts


class _Laps:
    """Differences of a meter, by part."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.parts: dict[str, float] = {}
        self.last = read()

    @torch.compiler.disable
    def lap(self, part: str, *_: object) -> None:
        now = self.read()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


def _matrix_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float], rounds: int = 30) -> float:
    """FLOP/s of the product of two large square matrices, the fastest of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    taken = []
    for _ in range(rounds):
        start = clock()
        a @ b
        taken.append(clock() - start)
    return 2 * side**3 / min(taken) * 1000


def _row(result: Result, processes: int) -> dict[str, Any]:
    """Numbers of the tables for JSON: milliseconds, GB, FLOP/s."""
    images_per_second = 1000 * processes * result.batch / result.step
    return {
        "machine": result.machine,
        "K": result.recipe.slotcon.num_prototypes,
        "batch": processes * result.batch,
        "ms": result.step,
        "images_per_second": images_per_second,
        "coco_epoch_seconds": COCO / images_per_second,
        "matrix_rate": result.rate,
        "rate_share": sum(result.arithmetic.values()) / result.step * 1000 / result.rate,
        "gb": result.memory,
        "live_gb": result.live,
        "parts_ms": result.parts,
    }


def describe_machine(device: torch.device) -> str:
    """The device's name; of a CPU, its threads too."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _show_parts(result: Result) -> None:
    recipe = result.recipe
    table = Table("part of a step", "ms", "share", "GFLOP", "TFLOP/s", "of the rate", title_justify="left")
    extras = [", compiled"] * recipe.compile + [", gradient checkpointing"] * recipe.grad_checkpointing
    table.title = (
        f"{recipe.backbone}, {recipe.view_size} px, K = {recipe.slotcon.num_prototypes}, {result.batch} images, "
        f"precision {recipe.mixed_precision}{''.join(extras)}"
    )
    table.caption = (
        f"{result.machine}, torch {torch.__version__}; matrix-product rate: {result.rate / 1e12:.2f} "
        f"TFLOP/s; {result.active:.1f} active slots per view"
    )
    waited = sum(result.parts.values())
    parts = sorted(result.parts, key=lambda part: -result.parts[part])
    rows = [(part, result.parts[part], result.arithmetic[part]) for part in parts]
    for name, ms, flops in [*rows, ("whole step, without stops", result.step, sum(result.arithmetic.values()))]:
        rate = flops / ms * 1000
        of_rate = f"{rate / result.rate:.0%}"
        table.add_row(name, f"{ms:.1f}", f"{ms / waited:.0%}", f"{flops / 1e9:.1f}", f"{rate / 1e12:.2f}", of_rate)
    show(table)


def _show_all(results: list[Result], processes: int, gpus: int) -> None:
    speed = Table("", "K", "batch", "ms a step", "images/s", "s a COCO epoch", "GB of tensors", "GB a process")
    sent = Table("K", "batch", "MB sent", "MB of keys", "all slots, MB", "one part in", title_justify="left")
    sent.title = f"what each of {gpus} GPUs would send in a step; keys: the active slots instead of all"
    for result in results:
        prototypes, batch = str(result.recipe.slotcon.num_prototypes), processes * result.batch
        rate = 1000 * batch / result.step
        measured = (f"{result.step:.0f}", f"{rate:,.4g}", f"{COCO / rate:,.0f}", f"{result.live:.2f}")
        speed.add_row(f"{processes} x {result.machine}", prototypes, str(batch), *measured, f"{result.memory:.1f}")
        keys, slots = result.keys
        sizes = (f"{size / 1e6:,.1f}" for size in (result.sent, keys, slots))
        sent.add_row(prototypes, str(gpus * result.batch), *sizes, f"{slots / keys:.0f}")
    comparable = results[0].recipe.backbone == "slotcon_r50"
    for name, batch, seconds, memory in REPORTED * comparable:
        speed.add_row(
            name,
            "",
            str(batch),
            f"{1000 * batch * seconds / COCO:.0f}",
            f"{COCO / seconds:.1f}",
            str(seconds),
            "",
            str(memory),
        )
    show(speed)
    show(sent)

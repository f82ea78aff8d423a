"""Several real processes against one: the file runs itself, forks, and hands back tensors.

What a process computed comes back in a file, by the name of the check; the comparison is made here.
"""

import copy
import datetime
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import slow
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from tiny import TINY, Batch, make_batch, make_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slotcon_hub import SlotCon, SlotConConfig, distributed
from slotcon_hub import functional as SF
from slotcon_hub.distributed import CpuSyncBatchNorm, synchronize_batchnorm
from slotcon_hub.objective.slot_loss import SlotLoss

SUPPORT = Path(__file__).parents[2] / "support"
TIMEOUT = 90  # seconds until processes that wait for each other count as hung
IMAGES = 2  # of each process

RAGGED = {2: [[3, 5], [0, 4], [4, 0], [0, 0]], 3: [[3, 0, 5], [0, 0, 2], [0, 0, 0]]}
NORM_SHAPES = {
    "map": [(2, 4, 3, 5), (3, 4, 3, 5)],
    "rows": [(3, 4), (6, 4)],
    "sequence": [(2, 4, 7), (1, 4, 7)],
    "one row each": [(1, 4), (1, 4)],
    "first empty": [(0, 4), (5, 4)],
    "last empty": [(2, 4, 3, 3), (0, 4, 3, 3)],
}

# The objective's options, and whether the norms mix samples.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, False),
    "norms": ({}, True),
    "regression": ({"slot_loss": "regression"}, True),
    "projections": ({"align": "projections"}, True),
    "image": ({"image_loss_weight": 0.7}, True),
}

# Which slots are active, in every image of rank 0 and of rank 1: (student's views, teacher's views).
SOME = [{0, 2}, {1, 2, 3}], [{1, 2, 3}, {0, 2, 4}]
NONE = [{0}, {1}], [{2, 3}, {4}]
ONE = [{0}, {1}], [{2}, {0}]  # direction (1, 2) has one pair an image, direction (2, 1) none
MORE = [{0}, {1, 2, 3}], [{1, 2, 3}, {0}]  # direction (1, 2) has one pair an image, direction (2, 1) three
PATTERNS = {
    "none on rank 0": (NONE, SOME),
    "none on rank 1": (SOME, NONE),
    "none on any rank": (NONE, NONE),
    "one on rank 1, none on rank 0": (NONE, ONE),
    "one on rank 0, some on rank 1": (ONE, SOME),
    "one, then more, on rank 0, none on rank 1": (MORE, NONE),
}
KINDS = get_args(SlotLoss)


# What the processes do, and the reference does with all of it.


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(rank: int, count: int) -> Tensor:
    return torch.randn(count, 3, generator=seeded(rank), dtype=torch.float64)


def norm_input(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * 3 + 5


def make_norm(shape: tuple[int, ...]) -> nn.Module:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](4, momentum=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 4))
        norm.bias.copy_(torch.linspace(-1, 1, 4))
    return norm


def norm_results(norm: nn.Module, inputs: list[Tensor], outputs_weight: list[Tensor]) -> dict[str, Any]:
    """Two steps: outputs, input gradients, parameter gradients, buffers, and an evaluation after them."""
    found: dict[str, Any] = {}
    for step, (x, weight) in enumerate(zip(inputs, outputs_weight, strict=True)):
        x = x.clone().requires_grad_()
        y = norm(x)
        (y * weight).sum().backward()
        found[f"output {step}"], found[f"input gradient {step}"] = y.detach(), x.grad
    found |= {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in norm.named_buffers()}
    found["evaluated"] = norm.eval()(inputs[0]).detach()
    return found


def make_timm() -> nn.Module:
    """Layers that are norm and activation in one."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Conv2d(8, 4, 3), BatchNormAct2d(4, apply_act=False)
    return nn.Sequential(*layers).double()


def timm_results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = model(x)
    y.square().sum().backward()
    found = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **found, **{name: b.double() for name, b in model.named_buffers()}}


def make_slotcon(norms: bool, config: SlotConConfig = TINY) -> SlotCon:
    """A model with BatchNorm, or with norms that do not mix samples in its place."""
    torch.manual_seed(1)
    model = make_model(config)  # its image-level loss, if any, keeps its norms
    if not norms:
        for part in (model.student.projector, model.teacher.projector, model.predictor):
            for i in (1, 4):
                part.mlp[i] = nn.GroupNorm(4, config.hidden_dim).double()
        model.teacher.requires_grad_(False)
    model.center.normal_(std=0.1)
    return model


def whole_batch(world: int) -> Batch:
    torch.manual_seed(2)
    return make_batch(IMAGES * world)


def part_of(batch: Batch, rank: int) -> Batch:
    rows = slice(rank * IMAGES, (rank + 1) * IMAGES)
    return tuple(tuple(x[rows] for x in pair) for pair in batch)  # type: ignore[return-value]


def slotcon_results(model: SlotCon, loss: Tensor, slot_loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    found |= {name: buffer.double() for name, buffer in model.named_buffers()}
    return {"loss": loss.detach(), "slot_loss": slot_loss.detach(), **found}


def activity(pattern: tuple[list[set[int]], list[set[int]]]) -> list[Tensor]:
    """What ``active_slots`` is made to say of the student's two views and the teacher's, for IMAGES images.

    The pattern is that of the first image. For ``ONE`` and ``MORE`` the others have no pair, as in ``NONE``.
    """
    maps = []
    for view, slots in enumerate([*pattern[0], *pattern[1]]):
        active = torch.zeros(IMAGES, TINY.num_prototypes, dtype=torch.bool)
        for image in range(IMAGES):
            chosen = [*NONE[0], *NONE[1]][view] if pattern in (ONE, MORE) and image else slots
            active[image, sorted(chosen)] = True
        maps.append(active)
    return maps


# The processes.


def check_gathers(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {"identity": (distributed.rank(), distributed.world_size())}
    for counts in RAGGED[world]:
        rows = rows_of(rank, counts[rank]).requires_grad_()
        gathered = distributed.gather_rows(rows * 1, counts)
        found[f"rows {counts}"] = gathered.detach()
        found[f"gradient {counts}"] = gathered.requires_grad and sum(counts) > 0
    found["counts"] = distributed.gather_counts(torch.tensor([rank, 10 + rank, 0]))
    value = torch.tensor([1.0, 2.0]) * (rank + 1)
    found["mean"], found["value"] = distributed.mean(value), value
    return found


def check_norms(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name, shapes in NORM_SHAPES.items():
        norm = synchronize_batchnorm(make_norm(shapes[rank]), "cpu")
        inputs = [norm_input(shapes[rank], 10 * step + rank) for step in (1, 2)]
        weights = [norm_input(shapes[rank], 100 * step + rank) for step in (1, 2)]
        found[name] = norm_results(norm, inputs, weights)
    return found


def check_low_precision(rank: int, world: int) -> dict[str, Any]:
    norm = synchronize_batchnorm(nn.BatchNorm2d(4), "cpu")
    x = (norm_input((2, 4, 3, 3), rank) * 50).bfloat16().requires_grad_()
    y = norm(x)
    y.float().square().sum().backward()
    return {"output": y.detach(), "gradient": x.grad, "running_var": norm.running_var}


def check_timm(rank: int, world: int) -> dict[str, Any]:
    x = norm_input((3, 3, 8, 8), 7)
    return timm_results(synchronize_batchnorm(make_timm(), "cpu"), x[:1] if rank == 0 else x[1:])


def make_wrapped(norms: bool, config: SlotConConfig, synchronized: bool) -> tuple[SlotCon, DistributedDataParallel]:
    """A model, and the same as training wraps it."""
    model = make_slotcon(norms, config)
    if synchronized:
        synchronize_batchnorm(model, "cpu")
    return model, DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def check_slotcon(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name, (options, norms) in VARIANTS.items():
        model, wrapped = make_wrapped(norms, replace(TINY, **options), synchronized=norms)
        out = wrapped(*part_of(whole_batch(world), rank))
        found[name] = slotcon_results(model, out.loss, out.slot_loss)
    return found


def check_one_direction_after_the_other(rank: int, world: int) -> dict[str, Any]:
    """As training goes: only the backward of the last direction sums the gradients over the processes."""
    found = {}
    for name, (options, norms) in VARIANTS.items():
        model, wrapped = make_wrapped(norms, replace(TINY, **options), synchronized=norms)
        batch = part_of(whole_batch(world), rank)
        targets = model.teach(*batch)
        with wrapped.no_sync():
            first = wrapped(*batch, targets=targets, directions=[0])
            first.loss.backward()
        last = wrapped(*batch, targets=targets, directions=[1])
        results = slotcon_results(model, last.loss, last.slot_loss)
        found[name] = results | {k: results[k] + getattr(first, k).detach() for k in ("loss", "slot_loss")}
    return found


def check_patterns(rank: int, world: int) -> dict[str, Any]:
    found = {}
    original = SF.active_slots
    for name, kind, synchronized in itertools.product(PATTERNS, KINDS, (True, False)):
        model, wrapped = make_wrapped(True, replace(TINY, slot_loss=kind), synchronized)
        s1, s2, t1, t2 = activity(PATTERNS[name][rank])
        said = iter((t1, t2, s1, s2))  # the order in which the forward asks
        SF.active_slots = lambda scores, said=said: next(said)
        out = wrapped(*part_of(whole_batch(world), rank))
        found[f"{name}, {kind}, synchronized {synchronized}"] = slotcon_results(model, out.loss, out.slot_loss)
    SF.active_slots = original
    return found


def check_traffic(rank: int, world: int) -> dict[str, Any]:
    model = make_slotcon(norms=False, config=SlotConConfig(num_prototypes=512, hidden_dim=16, out_dim=8))
    sent: dict[str, list[int]] = {"gathered": [], "reduced": []}
    gather, reduce = distributed._all_gather, dist.all_reduce

    def counting_gather(output: Tensor, value: Tensor) -> None:
        sent["gathered"].append(value.numel())
        gather(output, value)

    def counting_reduce(value: Tensor) -> None:
        sent["reduced"].append(value.numel())
        reduce(value)

    distributed._all_gather, dist.all_reduce = counting_gather, counting_reduce
    model(*part_of(whole_batch(world), rank))
    distributed._all_gather, dist.all_reduce = gather, reduce
    return sent


CHECKS: dict[int, list[Callable[[int, int], dict[str, Any]]]] = {
    2: [
        check_gathers,
        check_norms,
        check_low_precision,
        check_timm,
        check_slotcon,
        check_one_direction_after_the_other,
        check_traffic,
        check_patterns,
    ],
    3: [check_gathers],
}


def run_checks(rank: int, world: int, port: int, folder: Path) -> None:
    """One process: its results so far are on file when a check fails."""
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its successor needs torch 2.15
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timeout
    )
    found: dict[str, Any] = {}
    try:
        for check in CHECKS[world]:
            try:
                found[check.__name__] = check(rank, world)
            except Exception:
                found["error"] = f"{check.__name__}, rank {rank} of {world}:\n{traceback.format_exc()}"
                raise
    finally:
        torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


# The comparison.


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By the number of processes: for each process, its results by the name of the check."""
    root = tmp_path_factory.mktemp("processes")
    for world in CHECKS:
        (root / str(world)).mkdir()
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    job = subprocess.Popen(
        [sys.executable, "-W", "error", __file__, str(root)],
        env={**os.environ, **threads, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(SUPPORT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    hung = ""
    try:
        output = job.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        hung = f"the processes hung\n{job.communicate()[0]}"
    found = {}
    for world in CHECKS:
        files = [root / str(world) / f"{rank}.pt" for rank in range(world)]
        found[world] = [
            torch.load(f, weights_only=True) if f.is_file() else {"error": hung or output} for f in files
        ]
        for one in found[world]:
            if hung:
                one["error"] = hung
    return found


def of(results: dict[int, list[dict[str, Any]]], check: Callable[..., Any], world: int = 2) -> list[dict]:
    """What every process found in a check; a failure with what went wrong if one has nothing."""
    for one in results[world]:
        if check.__name__ not in one:
            pytest.fail("\n".join(r["error"] for r in results[world] if "error" in r))
    return [one[check.__name__] for one in results[world]]


def close(found: Any, expected: Any, what: str = "") -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10, msg=lambda m: f"{what}: {m}")


def test_every_process_ends_well(results):
    assert not [one["error"] for world in results.values() for one in world if "error" in one]


@pytest.mark.parametrize(("world", "counts"), [(w, c) for w, many in RAGGED.items() for c in many])
def test_gather_rows(results, world, counts):
    expected = torch.cat([rows_of(rank, count) for rank, count in enumerate(counts)])
    for found in of(results, check_gathers, world):
        assert torch.equal(found[f"rows {counts}"], expected)
        assert not found[f"gradient {counts}"]


@pytest.mark.parametrize("world", RAGGED)
def test_counts_and_mean(results, world):
    for rank, found in enumerate(of(results, check_gathers, world)):
        assert found["identity"] == (rank, world)
        assert found["counts"] == [[r, 10 + r, 0] for r in range(world)]
        close(found["mean"], torch.tensor([1.0, 2.0]) * (world + 1) / 2)
        close(found["value"], torch.tensor([1.0, 2.0]) * (rank + 1))  # left as it was


def test_one_process_needs_no_group():
    rows = torch.randn(3, 2)
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.gather_rows(rows, [3]), rows)
    assert torch.equal(distributed.mean(rows), rows)
    assert distributed.gather_counts(torch.tensor([4, 0])) == [[4, 0]]


@pytest.mark.parametrize("name", NORM_SHAPES)
def test_synchronized_norm_is_the_norm_of_the_whole_batch(results, name):
    shapes = NORM_SHAPES[name]
    inputs = [torch.cat([norm_input(s, 10 * step + r) for r, s in enumerate(shapes)]) for step in (1, 2)]
    weights = [torch.cat([norm_input(s, 100 * step + r) for r, s in enumerate(shapes)]) for step in (1, 2)]
    expected = norm_results(make_norm(shapes[0]), inputs, weights)
    found = [f[name] for f in of(results, check_norms)]
    for key, value in expected.items():
        parts = [f[key] for f in found]
        if key.startswith(("output", "input", "evaluated")):
            close(torch.cat(parts), value, key)
        elif key.startswith("gradient"):
            close(sum(parts), value, key)
        else:
            for part in parts:
                close(part, value, key)


def test_synchronized_norm_in_bfloat16(results):
    found = of(results, check_low_precision)
    x = torch.cat([(norm_input((2, 4, 3, 3), rank) * 50).bfloat16() for rank in (0, 1)])
    norm = nn.BatchNorm2d(4)
    expected = norm(x.float())
    output = torch.cat([f["output"] for f in found])
    assert output.dtype == found[0]["gradient"].dtype == torch.bfloat16
    assert all(f["gradient"].isfinite().all() for f in found)
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[1]["running_var"], norm.running_var, rtol=1e-5, atol=1e-5)


def test_synchronized_timm_layers_are_those_of_the_whole_batch(results):
    """The processes have one image and two."""
    expected = timm_results(make_timm(), norm_input((3, 3, 8, 8), 7))
    found = of(results, check_timm)
    close(torch.cat([f["output"] for f in found]), expected.pop("output"))
    for key, value in expected.items():
        parts = [f[key] for f in found]
        close(sum(parts) if key.startswith("gradient") else parts[0], value, key)


@pytest.mark.parametrize(
    "make",
    [lambda: nn.BatchNorm1d(4), lambda: timm.create_model("test_efficientnet"), lambda: make_slotcon(norms=True)],
)
def test_synchronize_batchnorm_keeps_names_and_tensors(make):
    plain = make()
    names = {n: type(m) for n, m in plain.named_modules()}
    state, parameters = plain.state_dict(), dict(plain.named_parameters())
    changed = synchronize_batchnorm(plain, "cpu")
    norms = [n for n, kind in names.items() if issubclass(kind, nn.modules.batchnorm._BatchNorm)]
    assert norms
    modules = dict(changed.named_modules())
    assert set(modules) == set(names)
    assert all(isinstance(modules[n], CpuSyncBatchNorm) for n in norms)
    assert list(changed.state_dict()) == list(state)
    assert all(v.data_ptr() == state[n].data_ptr() for n, v in changed.state_dict().items())
    assert all(p is parameters[n] for n, p in changed.named_parameters())  # an optimiser goes on with them


@pytest.mark.parametrize("training", [True, False])
def test_synchronized_norms_of_one_process_are_plain(training):
    plain = make_timm().train(training)
    changed = synchronize_batchnorm(copy.deepcopy(plain), "cpu")
    assert changed[1].training is training
    x = norm_input((3, 3, 8, 8), 7)
    close(changed(x), plain(x))
    close(changed.state_dict(), plain.state_dict())


def reference(
    model: SlotCon, batch: Batch, world: int, active: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and slot loss of the whole batch in one process: the mean over the processes of their own means.

    The predictor sees the queries of all processes as one batch, as synchronised norms make it.

    Args:
        model: its centre and running statistics move.
        batch: of all processes.
        world: number of processes.
        active: B x K booleans of the student's two views and the teacher's; what the scores say if left out.
    """
    c = model.config
    s, t, zs, zt, fs, ft, raw = [], [], [], [], [], [], []
    for net, f, z, scores in ((model.student, fs, zs, s), (model.teacher, ft, zt, t)):
        for view, box, flip in zip(*batch, strict=True):
            f.append(net.backbone(view))
            z.append(net.projector(f[-1]))
            raw.append(slow.cosine_scores(z[-1], net.prototypes.weight))
            if c.align == "projections":
                z[-1] = slow.align(z[-1], box, flip)
            scores.append(slow.cosine_scores(z[-1], net.prototypes.weight))
    if active is None:
        sets = [slow.active_slots(maps) for maps in (*s, *t)]
    else:
        sets = [[set(row.nonzero()[:, 0].tolist()) for row in maps] for maps in active]
    group, slot = torch.zeros(()), sum(p.sum() for p in model.predictor.parameters()) * 0
    for a, b in ((0, 1), (1, 0)):
        aligned = [s[a], t[b]]
        if c.align == "assignments":
            aligned = [slow.align(m, batch[1][v], batch[2][v]) for m, v in ((s[a], a), (t[b], b))]
        group = group + slow.grouping_loss(*aligned, model.center, c.student_temp, c.teacher_temp)
        mine, theirs = slow.group_slots(zs[a], s[a], c.teacher_temp), slow.group_slots(zt[b], t[b], c.teacher_temp)
        keys = [(i, k) for i, chosen in enumerate(sets[2 + b]) for k in sorted(chosen)]
        queries = [(i, k) for i, k in keys if k in sets[a][i]]
        if not queries:
            continue
        matrix = torch.stack([theirs[ik] / theirs[ik].norm() for ik in keys]).detach()
        predicted = model.predictor(torch.stack([mine[ik] for ik in queries]))
        losses: list[list[Tensor]] = [[] for _ in range(world)]
        for q, ik in zip(predicted, queries, strict=True):
            cosines = matrix @ (q / q.norm())
            logits, place = cosines / c.contrast_temp, keys.index(ik)
            own = 2 * c.contrast_temp * (logits.logsumexp(0) - logits[place])
            losses[ik[0] // IMAGES].append(2 - 2 * cosines[place] if c.slot_loss == "regression" else own)
        for own in losses:
            slot = slot + (sum(own) / len(own) / world if own else 0)
    with torch.no_grad():
        mean = torch.cat(raw[2:]).mean((0, 2, 3))
        model.center.mul_(c.center_momentum).add_(mean, alpha=1 - c.center_momentum)
    loss = c.group_loss_weight * group + (1 - c.group_loss_weight) * slot
    if c.image_loss_weight:
        loss = loss + c.image_loss_weight * slow.image_loss(fs, ft, model.image_loss, 0.2)
    return loss, slot


def compare(found: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        if key in ("loss", "slot_loss"):
            close(sum(f[key] for f in found) / len(found), value, key)
        else:  # DDP has averaged the gradients; the buffers are the same on all
            for f in found:
                close(f[key], value, key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_are_one_with_the_whole_batch(results, variant):
    options, norms = VARIANTS[variant]
    model = make_slotcon(norms, replace(TINY, **options))
    expected = slotcon_results(model, *reference(model, whole_batch(2), 2))
    assert expected["slot_loss"] > 0.1
    compare([f[variant] for f in of(results, check_slotcon)], expected)
    compare([f[variant] for f in of(results, check_one_direction_after_the_other)], expected)


@pytest.mark.parametrize("synchronized", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATTERNS)
def test_few_queries_neither_hang_nor_break(results, name, kind, synchronized):
    found = [f[f"{name}, {kind}, synchronized {synchronized}"] for f in of(results, check_patterns)]
    for one in found:
        assert all(value.isfinite().all() for value in one.values())
    for key in found[0]:
        if key.startswith("gradient"):
            assert torch.equal(found[0][key], found[1][key]), key
    for one, pattern in zip(found, PATTERNS[name], strict=True):
        assert (one["slot_loss"] == 0) == (pattern is NONE)
    predictor = sum(v.abs().sum() for k, v in found[0].items() if k.startswith("gradient of predictor"))
    assert (predictor == 0) == (name == "none on any rank")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATTERNS)
def test_few_queries_are_those_of_the_whole_batch(results, name, kind):
    """A single query of all processes is normalised by the running statistics, which it does not move."""
    model = make_slotcon(norms=True, config=replace(TINY, slot_loss=kind))
    active = [torch.cat(views) for views in zip(*map(activity, PATTERNS[name]), strict=True)]
    expected = slotcon_results(model, *reference(model, whole_batch(2), 2, active))
    compare([f[f"{name}, {kind}, synchronized True"] for f in of(results, check_patterns)], expected)
    moved = model.predictor.mlp[1].num_batches_tracked.item()
    pattern = PATTERNS[name]
    assert moved == (2 if SOME in pattern else 1 if MORE in pattern else 0)  # once for each direction


def test_only_active_keys_travel(results):
    config = SlotConConfig(num_prototypes=512, hidden_dim=16, out_dim=8)
    model = make_slotcon(norms=False, config=config)
    with torch.no_grad():
        counts = [
            [int(SF.active_slots(model.teacher(part_of(whole_batch(2), r)[0][v])[1]).sum()) for r in (0, 1)]
            for v in (1, 0)
        ]
    assert max(map(max, counts)) <= IMAGES * 16  # an image has 16 cells
    for sent in of(results, check_traffic):
        keys = [max(c) * config.out_dim for c in counts]
        assert sent["gathered"] == [2, keys[0], 2, keys[1]]
        assert sent["reduced"] == [config.num_prototypes]  # the centre
        assert max(sent["gathered"]) * 10 < IMAGES * config.num_prototypes * config.out_dim


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")  # one process pays for the imports
    ranks = [(rank, world, port) for world, port in [(w, free_port()) for w in CHECKS] for rank in range(world)]
    children = [fork.Process(target=run_checks, args=(*one, Path(sys.argv[1]) / str(one[1]))) for one in ranks]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(any(child.exitcode for child in children))

"""What only a CUDA device shows: half precision, the memory format, and how often the host waits."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from slotcon_hub import SlotCon, SlotConConfig

pytestmark = pytest.mark.gpu

CONFIG = SlotConConfig(num_prototypes=64, hidden_dim=128, out_dim=32)


@pytest.fixture
def model():
    return SlotCon("slotcon_r18", CONFIG).cuda()


@pytest.fixture
def batch():
    views = tuple(torch.randn(8, 3, 96, 96, device="cuda") for _ in range(2))
    boxes = tuple(torch.tensor([[0.1, 0.2, 0.9, 0.8]] * 8, device="cuda") for _ in range(2))
    flips = tuple(torch.arange(8, device="cuda") % 2 == 0 for _ in range(2))
    return views, boxes, flips


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(model, batch, dtype):
    full = copy.deepcopy(model)(*batch)
    with torch.autocast("cuda", dtype):
        half = model(*batch)
    half.loss.backward()
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.group_loss, full.group_loss, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_memory_format_changes_no_number(model, batch):
    plain = copy.deepcopy(model)(*batch)
    model.to(memory_format=torch.channels_last)
    views = tuple(v.contiguous(memory_format=torch.channels_last) for v in batch[0])
    torch.testing.assert_close(model(views, *batch[1:]).loss, plain.loss, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"slot_loss": "regression", "align": "projections", "image_loss_weight": 1.0}], ids=str
)
def test_the_host_waits_once(batch, options):
    """For the numbers of active slots, which are the shapes of queries and keys."""
    model = SlotCon("slotcon_r18", replace(CONFIG, **options)).cuda()
    model(*batch).loss.backward()  # warm up
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(*batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing" in str(w.message)]
    assert len(waits) == 1, [str(w.message) for w in waits]

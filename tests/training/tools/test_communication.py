"""Traffic between processes: the formulas against the tensors themselves, and the table."""

import pytest
import torch
from launched import launched

from slotcon_hub import SlotCon, SlotConConfig
from training.tools.communication import Machine, traffic


@pytest.fixture(scope="module")
def slotcon() -> SlotCon:
    with torch.device("meta"):
        return SlotCon("slotcon_nano", SlotConConfig(num_prototypes=2048))


def test_one_process_sends_nothing(slotcon):
    assert traffic(slotcon, batch=8, active=7, processes=1).total == 0


def test_sizes_are_those_of_the_tensors(slotcon):
    sent = traffic(slotcon, batch=8, active=7, processes=4)
    gradients = sum(p.nbytes for p in slotcon.parameters() if p.requires_grad)
    assert sent.gradients == pytest.approx(2 * 3 / 4 * gradients)
    keys = torch.empty(2, 8 * 7, slotcon.config.out_dim, device="meta")
    assert sent.keys == 3 * keys.nbytes
    assert sent.dense_keys == 3 * torch.empty(2, 8, 2048, slotcon.config.out_dim, device="meta").nbytes
    channels = [v.numel() for k, v in slotcon.state_dict().items() if k.endswith("running_mean")]
    own = [v.numel() for k, v in slotcon.state_dict().items() if k.endswith("running_mean") and "teacher" not in k]
    forward, backward = 3 * sum(2 * c + 1 for c in channels), 2 * 3 / 4 * sum(2 * c for c in own)
    assert sent.batchnorm == pytest.approx(2 * 4 * (forward + backward))
    assert sent.total == pytest.approx(sent.gradients + sent.keys + sent.batchnorm + sent.rest)


def test_the_image_loss_sends_its_views_and_statistics_too(slotcon):
    with torch.device("meta"):
        image = SlotCon("slotcon_nano", SlotConConfig(num_prototypes=2048, image_loss_weight=1.0))
    plain, more = (traffic(model, batch=8, active=7, processes=2) for model in (slotcon, image))
    assert more.keys / plain.keys == pytest.approx(8 / 7)  # a view counts as one more slot
    channels = [m.num_features for m in image.image_loss.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(channels) == 6
    assert more.batchnorm - plain.batchnorm == 2 * 4 * (
        sum(2 * c + 1 for c in channels) + sum(2 * c for c in channels[:4])
    )
    assert more.gradients > plain.gradients


def test_active_keys_are_a_thirtieth_of_all_at_most(slotcon):
    sent = traffic(slotcon, batch=64, active=49, processes=8)  # a slot for each cell of a 7 x 7 map
    assert sent.dense_keys / sent.keys > 30


def test_the_estimate_waits_longer_for_more_processes(slotcon):
    machine = Machine()
    seconds = [machine.seconds(traffic(slotcon, batch=64, active=7, processes=n), n) for n in (2, 8, 16, 512)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_the_command_prints_from_1_to_512_gpus(tmp_path):
    said = launched(tmp_path, ["training.tools.communication", "--backbone", "slotcon_nano", "--batch", 16])
    assert "512" in said
    assert "16 images a GPU" in " ".join(said.split())
    assert "Assumed" in said

import pytest
import torch
from checkpoint_files import SMALL, Malicious, backbone_only, official, one_sentence, possible
from safetensors.torch import save_file

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.convert import from_official
from slotcon_hub.weights.reader import read_checkpoint
from training.engine import checkpoint
from training.pretraining.continuing import load


@pytest.fixture(scope="module")
def slotcon() -> SlotCon:
    return SlotCon("slotcon_r18", SMALL)


def written(path, **values):
    """An authors' file with other values."""
    torch.save({**read_checkpoint(path), **values}, path)
    return path


def test_an_authors_checkpoint_bit_for_bit_and_its_epoch(tmp_path, slotcon):
    path = written(official(tmp_path), epoch=7)
    assert load(path, slotcon, epoch=None, epochs=800) == 7
    state, expected = slotcon.state_dict(), from_official(read_checkpoint(path))
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, state[key]) for key, value in expected.items())
    assert load(path, slotcon, epoch=0, epochs=5) == 0


def test_without_an_epoch_it_is_the_first(tmp_path, slotcon):
    torch.save({"model": possible()}, tmp_path / "model.pth")
    assert load(tmp_path / "model.pth", slotcon, epoch=None, epochs=3) == 0


def test_the_model_of_another_run(tmp_path, slotcon):
    state = {key: torch.full_like(value, 3) for key, value in slotcon.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors", slotcon, epoch=None, epochs=3) == 0
    assert all((value == 3).all() for value in slotcon.state_dict().values())


def test_the_folder_of_a_run_and_its_checkpoints_name_their_epoch(tmp_path, slotcon):
    optimizer, settings = {"optimizer": {}}, {"settings": {"images": 103, "batch_size": 10}}
    for step, value in ((20, 2.0), (39, 4.0)):
        with torch.no_grad():
            for part in slotcon.state_dict().values():
                part.fill_(value)
        checkpoint.save(tmp_path, step, slotcon, optimizer, settings, keep=2)
    first, newest = (tmp_path / "checkpoints" / f"step-{step:08d}" for step in (20, 39))
    for path, epoch, value in (
        (tmp_path, 3, 4),
        (newest, 3, 4),
        (first, 2, 2),
        (first / "model.safetensors", 2, 2),
    ):
        assert load(path, slotcon, epoch=None, epochs=5) == epoch
        assert all((part == value).all() for part in slotcon.state_dict().values())
    assert load(tmp_path, slotcon, epoch=0, epochs=5) == 0
    with pytest.raises(ValueError, match="was trained for 3 epochs, and this schedule ends at 3: give more"):
        load(tmp_path, slotcon, epoch=None, epochs=3)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_heads_of_the_image_level_loss_must_be_there(tmp_path, weight):
    there = SlotCon("slotcon_nano", SlotConConfig(5, 12, 7, image_loss_weight=weight))
    save_file(there.state_dict(), tmp_path / "model.safetensors")
    here = SlotCon("slotcon_nano", SlotConConfig(5, 12, 7, image_loss_weight=1.0))
    if weight:
        load(tmp_path / "model.safetensors", here, epoch=None, epochs=3)
        assert torch.equal(here.image_loss.predictor.mlp[0].weight, there.image_loss.predictor.mlp[0].weight)
    else:
        with pytest.raises(ValueError, match=r"keys are absent .*image_loss"):
            load(tmp_path / "model.safetensors", here, epoch=None, epochs=3)


def other_prototypes(folder):
    model = possible()
    for side in "qk":
        model[f"module.grouping_{side}.slot_embed.weight"] = torch.randn(6, SMALL.out_dim)
    return written(official(folder), model={**model, "module.center": torch.zeros(1, 6)})


def not_finite(folder):
    model = possible()
    model["module.center"][0, 0] = torch.nan
    return written(official(folder), model=model)


def cut(folder):
    path = official(folder)
    path.write_bytes(path.read_bytes()[:1000])
    return path


def cut_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"abc")
    return folder / "model.safetensors"


def code(folder):
    return written(official(folder), args=Malicious(folder / "marker"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            official,
            "was trained for 800 epochs, and this schedule ends at 800: give more --epochs",
        ),
        (backbone_only, "holds backbone only, from which training cannot continue"),
        (
            other_prototypes,
            r"center is \(1, 6\) instead of \(1, 5\): continue from .* with its backbone",
        ),
        (not_finite, "center has NaN or Inf"),
        (cut, "is not a checkpoint .*download it again"),
        (cut_safetensors, "is damaged, or no safetensors file"),
        (code, "so it was not loaded"),
        (lambda folder: folder / "none.pth", "there is no checkpoint at"),
        (lambda folder: folder, "holds no checkpoint of a run: give --continue-from the folder of a run"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_in_a_sentence(tmp_path, slotcon, make, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load(make(tmp_path), slotcon, epoch=None, epochs=800)
    one_sentence(error.value)
    assert not (tmp_path / "marker").exists()

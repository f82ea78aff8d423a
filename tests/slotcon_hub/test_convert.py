import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.checkpoints import read_checkpoint
from slotcon_hub.convert import from_official

SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)


def official_model(config: SlotConConfig = SMALL, prefix: str = "module.") -> dict[str, Tensor]:
    """Names and shapes of the authors' model on a ResNet-18, in their order; every tensor is different."""
    hidden, dim = config.hidden_dim, config.out_dim
    with torch.device("meta"):
        encoder = torchvision.models.resnet18().state_dict()
    encoder = {k: v for k, v in encoder.items() if not k.startswith("fc.")}
    model: dict[str, Tensor] = {f"encoder_{side}.{k}": v for side in "qk" for k, v in encoder.items()}

    def mlp(name: str, *conv: int, channels: int) -> None:
        for i, (outputs, inputs) in {0: (hidden, channels), 3: (hidden, hidden), 6: (dim, hidden)}.items():
            model[f"{name}.mlp.{i}.weight"] = torch.empty(outputs, inputs, *conv)
            model[f"{name}.mlp.{i}.bias"] = torch.empty(outputs)
            if i < 6:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    model[f"{name}.mlp.{i + 1}.{part}"] = torch.empty(hidden)
                model[f"{name}.mlp.{i + 1}.num_batches_tracked"] = torch.tensor(0)

    mlp("projector_q", 1, 1, channels=512)
    mlp("projector_k", 1, 1, channels=512)
    mlp("predictor_slot", channels=dim)
    model["center"] = torch.empty(1, config.num_prototypes)
    for side in "qk":
        model[f"grouping_{side}.slot_embed.weight"] = torch.empty(config.num_prototypes, dim)
    return {
        prefix + k: torch.randn(v.shape) if v.is_floating_point() else torch.tensor(i)
        for i, (k, v) in enumerate(model.items())
    }


def official_file(folder: Path, model: dict[str, Tensor]) -> Path:
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    checkpoint = {
        "args": argparse.Namespace(arch="resnet50", epochs=800, crop_size=224, lr=1.0, fp16=True, data_dir=None),
        "model": model,
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 7, "base_lrs": [1.0]},
        "epoch": 800,
        "scaler": {"scale": 65536.0, "growth_tracker": 3},
    }
    torch.save(checkpoint, folder / "ckpt_epoch_800.pth")
    return folder / "ckpt_epoch_800.pth"


def test_a_published_checkpoint_loads_strictly_and_bit_for_bit(tmp_path):
    theirs = official_model()
    model = SlotCon("slotcon_r18", SMALL)
    model.load_state_dict(from_official(read_checkpoint(official_file(tmp_path, theirs))))
    names = {"encoder": "backbone", "projector": "projector", "grouping": "prototypes"}
    ours = model.state_dict()
    seen = set()
    for side, network in (("q", "student"), ("k", "teacher")):
        for part, name in names.items():
            prefix = f"module.{part}_{side}."
            for key in (k for k in theirs if k.startswith(prefix)):
                target = f"{network}.{name}.{key.removeprefix(prefix).removeprefix('slot_embed.')}"
                assert torch.equal(ours[target], theirs[key]), target
                seen.add(target)
    for key in (k for k in theirs if k.startswith("module.predictor_slot.")):
        target = f"predictor.{key.removeprefix('module.predictor_slot.')}"
        assert torch.equal(ours[target], theirs[key]), target
        seen.add(target)
    assert torch.equal(ours["center"], theirs["module.center"])
    assert seen | {"center"} == set(ours)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("outer", [False, True])
def test_the_outer_mapping_and_the_prefix_are_optional(outer, prefix):
    plain = official_model(prefix="")
    theirs = {prefix + key: value for key, value in plain.items()}
    found = from_official({"epoch": 3, "model": theirs} if outer else theirs)
    assert len(found) == len(plain)
    assert found["teacher.prototypes.weight"] is plain["grouping_k.slot_embed.weight"]  # nothing is copied


def test_dtypes_are_kept(tmp_path):
    theirs = {k: v.half() if v.is_floating_point() else v for k, v in official_model().items()}
    found = from_official(read_checkpoint(official_file(tmp_path, theirs)))
    assert {v.dtype for v in found.values()} == {torch.float16, torch.int64}
    assert found["student.backbone.bn1.num_batches_tracked"].dtype == torch.int64


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_does_not_run(tmp_path, legacy):
    marker, path = tmp_path / "marker", tmp_path / "checkpoint.pth"
    checkpoint = {"model": official_model(), "args": Malicious(marker)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"it holds posix\.system") as error:
        read_checkpoint(path)
    one_sentence(error.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert marker.exists()


def one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    assert "weights_only" not in str(error)


@pytest.mark.parametrize("kept", [0, 10, 2000, -100])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = official_file(tmp_path, official_model())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint.*download it again") as error:
        read_checkpoint(path)
    one_sentence(error.value)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>not found</html>", b"hello", b"{}", bytes(100), pickle.dumps({"model": print}, 2)],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint") as error:
        read_checkpoint(path)
    one_sentence(error.value)


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_no_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / name)


def test_a_backbone_is_not_a_checkpoint_to_continue_from():
    backbone = {k: v for k, v in official_model().items() if "encoder_k" in k}
    with pytest.raises(ValueError, match=r"has no student\.backbone, .*backbone-only file") as error:
        from_official({"model": backbone})
    one_sentence(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "module.fc.weight",
        "module.encoder.conv1.weight",
        "module.center2",
        "conv1.weight",
        "x.module.center",
        "module.projector_q.other.weight",
    ],
)
def test_an_unknown_key_is_named(key):
    with pytest.raises(ValueError, match=rf"'{key}' is not part of an official SlotCon checkpoint") as error:
        from_official({"model": {**official_model(), key: torch.zeros(1)}})
    one_sentence(error.value)


@pytest.mark.parametrize("value", [3, "text", None, [1.0]])
def test_what_is_no_tensor_is_refused(value):
    with pytest.raises(ValueError, match=r"'module\.center' is not part of"):
        from_official({"model": {**official_model(), "module.center": value}})


@pytest.mark.parametrize("missing", ["center", "predictor_slot.", "grouping_q.", "encoder_k."])
def test_an_absent_part_is_named(missing):
    rest = {k: v for k, v in official_model().items() if not k.startswith(f"module.{missing}")}
    ours = {"center": "center", "predictor_slot.": "predictor.mlp", "grouping_q.": "student.prototypes"}
    expected = ours.get(missing, "teacher.backbone")
    with pytest.raises(ValueError, match=rf"the checkpoint has no {expected}:"):
        from_official(rest)


@pytest.mark.parametrize("checkpoint", [torch.zeros(3), [1, 2], {"model": torch.zeros(2)}, {}])
def test_a_file_that_holds_something_else_is_refused(checkpoint):
    with pytest.raises(ValueError, match="checkpoint h"):
        from_official(checkpoint)

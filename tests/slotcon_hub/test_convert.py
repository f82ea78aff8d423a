import pickle

import pytest
import torch
from checkpoint_files import SMALL, Malicious, official_file, official_model, one_sentence

from slotcon_hub import SlotCon
from slotcon_hub.convert import from_official
from slotcon_hub.weights.reader import read_checkpoint


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
    with pytest.raises(
        ValueError, match=rf"'{key.replace('module.', '')}' is not part of an official SlotCon checkpoint"
    ) as error:
        from_official({"model": {**official_model(), key: torch.zeros(1)}})
    one_sentence(error.value)


@pytest.mark.parametrize("value", [3, "text", None, [1.0]])
def test_what_is_no_tensor_is_refused(value):
    with pytest.raises(ValueError, match=r"'center' is not part of"):
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
    with pytest.raises(ValueError, match=r"checkpoint(:| h)"):
        from_official(checkpoint)

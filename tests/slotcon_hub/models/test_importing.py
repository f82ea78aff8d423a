"""Checkpoints of every kind into the store, and what is refused on the way."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import (
    SMALL,
    Malicious,
    backbone_only,
    official,
    official_file,
    one_sentence,
    possible,
)
from safetensors.torch import load_file, save_file

from slotcon_hub import SlotCon
from slotcon_hub.convert import from_official
from slotcon_hub.export.teacher import export
from slotcon_hub.models.importing import import_checkpoint, split_name
from slotcon_hub.weights import store

pytestmark = pytest.mark.usefixtures("home")
NAME, PROTO = "slotcon_r18.mine", "slotcon_r18_proto.mine"


@cache
def model() -> SlotCon:
    slotcon = SlotCon("slotcon_r18", SMALL)
    slotcon.load_state_dict(from_official(possible()))
    return slotcon


def state_file(folder: Path) -> Path:
    save_file(model().state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def state_with_image_loss(folder: Path) -> Path:
    heads = SlotCon("slotcon_nano", replace(SMALL, image_loss_weight=1.0)).state_dict()
    heads = {key: value for key, value in heads.items() if key.startswith("image_loss.")}
    save_file({**model().state_dict(), **heads}, folder / "model.safetensors")
    return folder / "model.safetensors"


def checkpoint_folder(folder: Path) -> Path:
    return state_file(folder).parent


def unfinished_run(folder: Path) -> Path:
    for step in ("step-00000003", "step-00000012"):
        (folder / "run/checkpoints" / step).mkdir(parents=True)
    state_file(folder / "run/checkpoints/step-00000012")
    return folder / "run"


def export_folder(folder: Path) -> Path:
    return export(model(), folder / "export", input_size=64, trained="In a test.")


def run(folder: Path) -> Path:
    return export_folder(folder).parent


def exported_backbone(folder: Path) -> Path:
    return export_folder(folder) / "backbone"


KINDS = [
    official,
    backbone_only,
    state_file,
    state_with_image_loss,
    checkpoint_folder,
    unfinished_run,
    export_folder,
    run,
    exported_backbone,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised_and_loads(tmp_path, home, kind):
    done = import_checkpoint(kind(tmp_path), NAME)
    alone = kind in (backbone_only, exported_backbone)
    assert list(done.folders) == store.names() == ([NAME] if alone else [NAME, PROTO])
    assert {p.name for p in home.iterdir()} == set(done.folders)
    net = timm.create_model(f"local-dir:{done.folders[NAME]}", pretrained=True)
    loaded = net.state_dict()
    stated = kind in (export_folder, run, exported_backbone)  # by the configuration beside the weights
    assert net.pretrained_cfg["input_size"][-1] == (64 if stated else 224)
    if not alone:
        both = timm.create_model(f"local-dir:{done.folders[PROTO]}", pretrained=True)
        assert both.prototypes.weight.shape == (5, 7)
        assert both.pretrained_cfg["input_size"] == net.pretrained_cfg["input_size"]
        inside = both.backbone.state_dict()
        assert all(torch.equal(inside[k], v) for k, v in loaded.items())
    file = store.verify(done.folders[NAME])
    assert file.stat().st_mode == file.with_name(store.CONFIG).stat().st_mode  # a store may be shared
    assert {k: v.shape for k, v in load_file(file).items()} == {k: v.shape for k, v in loaded.items()}


def test_it_is_the_teacher_that_comes_in(tmp_path):
    theirs = possible()
    done = import_checkpoint(official_file(tmp_path, theirs), NAME)
    found = load_file(done.folders[NAME] / store.WEIGHTS)
    assert all(torch.equal(v, theirs[f"module.encoder_k.{k}"]) for k, v in found.items())
    found = load_file(done.folders[PROTO] / store.WEIGHTS)
    assert torch.equal(found["prototypes.weight"], theirs["module.grouping_k.slot_embed.weight"])


def test_the_deep_stem_of_nano_comes_in(tmp_path):
    slotcon = SlotCon("slotcon_nano", SMALL)
    torch.save(slotcon.state_dict(), tmp_path / "nano.pth")
    done = import_checkpoint(tmp_path / "nano.pth", "slotcon_nano.mine")
    loaded = timm.create_model(f"local-dir:{done.folders['slotcon_nano.mine']}", pretrained=True, in_chans=1)
    assert loaded(torch.zeros(1, 1, 64, 64)).shape == (1, 256)


@pytest.mark.parametrize("part", ["backbone", "prototypes"])
def test_a_network_of_another_stride_does_not_come_in_by_the_name_of_the_usual_one(tmp_path, home, part):
    backbone = timm.create_model("slotcon_r18", num_classes=0, global_pool="", output_stride=16)
    folder = export(SlotCon(backbone, SMALL), tmp_path / "export", input_size=64, trained="In a test.")
    with pytest.raises(ValueError, match="made with output_stride=16, which slotcon_r18 is not") as error:
        import_checkpoint(folder / part, NAME)
    one_sentence(error.value)
    assert not home.exists()


def test_the_export_of_a_nano_comes_in(tmp_path):
    folder = export(SlotCon("slotcon_nano", SMALL), tmp_path / "export", input_size=64, trained="In a test.")
    assert len(import_checkpoint(folder, "slotcon_nano.mine").folders) == 2
    assert len(import_checkpoint(folder / "backbone", "slotcon_nano.alone").folders) == 1


@pytest.mark.parametrize("part", ["", "prototypes", "backbone"])
def test_a_run_on_timms_own_name_of_the_network_comes_in_whole(tmp_path, part):
    folder = export(SlotCon("resnet18", SMALL), tmp_path / "export", input_size=64, trained="In a test.")
    assert list(import_checkpoint(folder / part, NAME).folders) == [NAME, PROTO][: 1 if part == "backbone" else 2]


def test_a_network_that_has_the_same_weights_is_told_from_its_configuration(tmp_path, home):
    folder = export(SlotCon("resnetblur18", SMALL), tmp_path / "export", input_size=64, trained="In a test.")
    for part in ("backbone", "prototypes"):
        with pytest.raises(ValueError, match=r"is of a resnetblur18, which slotcon_r18 is not"):
            import_checkpoint(folder / part, NAME)
    assert not home.exists()


WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module._orig_mod."]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("kind", ["official", "slotcon", "prototypes", "backbone"])
def test_what_wrappers_add_to_names_makes_no_difference(tmp_path, kind, prefix, inside):
    bare = {
        "official": {k.removeprefix("module."): v for k, v in possible().items()},
        "slotcon": model().state_dict(),
        "prototypes": model().teacher.state_dict(),
        "backbone": model().teacher.backbone.state_dict(),
    }[kind]
    wrapped = {(k.replace(".", f".{prefix}", 1) if inside else f"{prefix}{k}"): v for k, v in bare.items()}
    torch.save({"model": wrapped}, tmp_path / "wrapped.pth")
    done = import_checkpoint(tmp_path / "wrapped.pth", NAME)
    assert done.kind == kind
    found = load_file(done.folders[NAME] / store.WEIGHTS)
    teacher = model().teacher if kind != "official" else None
    for key, value in (teacher.backbone.state_dict() if teacher else found).items():
        assert torch.equal(found[key], value)


def test_names_that_are_one_without_their_wrappers_are_refused(tmp_path, home):
    state = model().teacher.backbone.state_dict()
    torch.save({**state, "module.bn1.bias": torch.ones(64)}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"'bn1\.bias' occurs twice"):
        import_checkpoint(tmp_path / "two.pth", NAME)
    assert not home.exists()


@pytest.mark.parametrize("whole", [False, True])
def test_counters_of_batches_may_be_absent(tmp_path, whole):
    state = model().teacher.state_dict() if whole else timm.create_model("resnet18", num_classes=0).state_dict()
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]  # of a state with torch's metadata, for which torch itself would be strict
    torch.save(state, tmp_path / "old.pth")
    done = import_checkpoint(tmp_path / "old.pth", NAME)
    found = load_file(done.folders[NAME] / store.WEIGHTS)
    assert found["bn1.num_batches_tracked"] == 0
    overlay = {"state_dict": {k: v for k, v in state.items() if not k.startswith("projector")}}
    if not whole:
        net = timm.create_model("slotcon_r18", pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(net.conv1.weight, state["conv1.weight"])


def test_another_run_is_replaced_only_when_that_is_asked(tmp_path, home):
    import_checkpoint(official(tmp_path), NAME)
    before = load_file(home / NAME / store.WEIGHTS)
    for checkpoint in (state_file(tmp_path), backbone_only(tmp_path)):
        with pytest.raises(FileExistsError, match=f"the store has {NAME} already: add --force") as error:
            import_checkpoint(checkpoint, NAME)
        one_sentence(error.value)
    assert all(torch.equal(v, before[k]) for k, v in load_file(home / NAME / store.WEIGHTS).items())
    import_checkpoint(backbone_only(tmp_path), NAME, force=True)
    assert store.names() == [NAME]  # the prototypes were those of the run before
    assert [path.name for path in home.iterdir()] == [NAME]


def damaged(change):
    def write(folder: Path) -> Path:
        state = possible()
        change(state)
        return official_file(folder, state)

    return write


def truncated(folder: Path) -> Path:
    path = state_file(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def page(folder: Path) -> Path:
    (folder / "page.safetensors").write_text("<!DOCTYPE html>")
    return folder / "page.safetensors"


def text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def optimizer(folder: Path) -> Path:
    torch.save({"optimizer": {"state": {}}}, folder / "optimizer.pth")
    return folder / "optimizer.pth"


def numbers(folder: Path) -> Path:
    torch.save([1, 2], folder / "numbers.pth")
    return folder / "numbers.pth"


def stray(folder: Path) -> Path:
    save_file({**model().state_dict(), "other.weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def wide(folder: Path) -> Path:
    """Of a ResNet-50, by the name of a ResNet-18."""
    torch.save(timm.create_model("resnet50", num_classes=0).state_dict(), folder / "r50.pth")
    return folder / "r50.pth"


T = "module.encoder_k.layer1.0.conv1.weight"
REFUSED = {
    truncated: "is damaged, or no safetensors file",
    page: "is damaged, or no safetensors file",
    text: "is not a checkpoint of tensors",
    optimizer: "this is not a SlotCon checkpoint",
    numbers: "a checkpoint holds named tensors",
    stray: r"'other\.weight' is not part of a SlotCon",
    empty: "holds neither model.safetensors nor an export nor checkpoints",
    wide: "these weights are not those of slotcon_r18: .* unknown",
    damaged(lambda s: s.pop(T)): "1 keys are absent and 0 unknown",
    damaged(lambda s: s[T].view(-1)[7].fill_(torch.nan)): r"layer1\.0\.conv1\.weight has NaN or Inf",
    damaged(lambda s: s.update({T: s[T][:-1]})): r"conv1\.weight is \(63, 64, 3, 3\) instead of \(64, 64, 3, 3\)",
    damaged(lambda s: s.pop("module.grouping_k.slot_embed.weight")): r"the checkpoint has no teacher\.prototypes",
    damaged(lambda s: s.pop("module.projector_k.mlp.0.weight")): r"projector\.mlp\.0\.weight is absent",
    damaged(lambda s: s["module.projector_k.mlp.1.running_var"].fill_(-1)): "the output for an image has NaN or",
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_is_refused_leaves_the_store_as_it_was(tmp_path, home, make):
    with pytest.raises((ValueError, FileNotFoundError), match=REFUSED[make]) as error:
        import_checkpoint(make(tmp_path), NAME)
    one_sentence(error.value)
    assert not home.exists()


def test_code_in_a_checkpoint_does_not_run(tmp_path, home):
    torch.save({"model": possible(), "args": Malicious(tmp_path / "marker")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"posix\.system"):
        import_checkpoint(tmp_path / "bad.pth", NAME)
    assert not (tmp_path / "marker").exists()
    assert not home.exists()


@pytest.mark.parametrize(
    ("dims", "problem"),
    [
        ({"num_classes": 7, "hidden_dim": 8}, "has 256 prototypes and this checkpoint 7"),
        ({"hidden_dim": 8}, "has 4096 hidden channels and this checkpoint 8"),
        ({"hidden_dim": 8, "out_dim": 9}, "has 256 embedding channels and this checkpoint 9"),
    ],
)
def test_published_names_are_kept_to_their_dimensions(tmp_path, home, dims, problem):
    torch.save(timm.create_model("slotcon_r50_proto", **dims).state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(ValueError, match=problem) as error:
        import_checkpoint(tmp_path / "teacher.pth", "slotcon_r50.coco_800ep")
    one_sentence(error.value)
    assert not home.exists()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("slotcon_r50", ("slotcon_r50", "coco_800ep")),
        ("slotcon_r50_proto.in1k_100ep", ("slotcon_r50", "in1k_100ep")),
        ("slotcon_r18.v1.2", ("slotcon_r18", "v1.2")),
        ("slotcon_nano_proto", ("slotcon_nano", "imagenette_180ep")),
    ],
)
def test_names(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("slotcon_r18", "has no default tag"),
        ("resnet50.mine", "no architecture 'resnet50'"),
        ("slotcon_r9.mine", "no architecture 'slotcon_r9'"),
        ("slotcon_r18.../../x", "is no name of weights"),
        ("", "no architecture ''"),
    ],
)
def test_no_names(name, problem):
    with pytest.raises(ValueError, match=problem) as error:
        split_name(name)
    one_sentence(error.value)

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import TINY, TinyBackbone, make_swin, shaken
from torch import Tensor, nn

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.distributed import synchronize_batchnorm
from slotcon_hub.export.teacher import backbone_model, export, prototype_model
from slotcon_hub.models import saving
from slotcon_hub.models.backbone import create_backbone

SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)
SIDE = 64
FILES = {"model.safetensors", "config.json", "README.md"}

PLAIN_TIMM = """
import sys, timm, torch
folder, images, out = sys.argv[1:]
x = torch.load(images, weights_only=True)
found = {}
for name in folder.split(","):
    model = timm.create_model(f"local-dir:{name}/backbone", pretrained=True).eval()
    with torch.no_grad():
        (dense,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        found[name] = {"map": dense, "features": model(x), "state": model.state_dict()}
assert "slotcon_hub" not in sys.modules
torch.save(found, out)
"""


def trained(backbone: str | nn.Module) -> SlotCon:
    """A model in which student and teacher differ, and nothing is at its default."""
    return shaken(SlotCon(backbone, SMALL), 0.05).train()


def write(model: SlotCon, folder: Path) -> Path:
    return export(model, folder, input_size=SIDE, trained="On random numbers, for no epoch.")


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def of_teacher(model: SlotCon) -> tuple[Tensor, Tensor]:
    """The teacher's map and raw scores, evaluated."""
    dense = model.teacher.float().eval()(images())
    return dense.features, dense.scores


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


VARIANTS = {
    "slotcon_nano": lambda: trained("slotcon_nano"),
    "slotcon_r18": lambda: trained("slotcon_r18"),
    "resnet18": lambda: trained("resnet18"),
    "channels_last": lambda: trained("slotcon_nano").to(memory_format=torch.channels_last),
    "synchronized": lambda: synchronize_batchnorm(trained("slotcon_nano"), "cpu"),
    "stride": lambda: trained(timm.create_model("slotcon_nano", num_classes=0, global_pool="", output_stride=8)),
    "vit": lambda: trained(create_backbone("test_vit", SIDE)),  # timm would pool it by its class token
    "vit4": lambda: trained(create_backbone("test_vit4", SIDE)),  # timm would put a norm behind its pooling
    "swin": lambda: trained(make_swin(SIDE)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SlotCon, Path, dict[str, Tensor]]]:
    """By variant: the model, its export, and what plain timm makes of that without this package."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("exports")
    models = {name: make() for name, make in VARIANTS.items()}
    folders = [str(write(model, root / name)) for name, model in models.items()]
    torch.save(images(), root / "images.pt")
    subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PLAIN_TIMM,
            ",".join(folders),
            root / "images.pt",
            root / "found.pt",
        ],
        check=True,
        cwd=root,
    )
    found = torch.load(root / "found.pt", weights_only=True)
    return {name: (models[name], root / name, found[str(root / name)]) for name in models}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_backbone_is_the_teacher_in_plain_timm(exported, variant):
    model, _, plain = exported[variant]
    features, _ = of_teacher(model)
    close(plain["map"], features)
    close(plain["features"], features.mean((2, 3)))
    teacher = model.teacher.backbone.state_dict()
    assert set(plain["state"]) == set(teacher)
    assert all(torch.equal(value, teacher[key]) for key, value in plain["state"].items())
    student = model.student.backbone.state_dict()
    assert any(not torch.equal(value, student[key]) for key, value in plain["state"].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prototypes_are_the_teacher(exported, variant):
    model, folder, _ = exported[variant]
    _, scores = of_teacher(model)
    with torch.no_grad():
        pooled = timm.create_model(f"local-dir:{folder}/prototypes", pretrained=True).eval()
        dense = timm.create_model(f"local-dir:{folder}/prototypes", pretrained=True, global_pool="").eval()
        close(dense(images()), scores)
        close(pooled(images()), scores.mean((2, 3)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_exactly_these_files(exported, variant):
    _, folder, _ = exported[variant]
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {f"{kind}/{file}" for kind in ("backbone", "prototypes") for file in FILES}
    assert not [f for f in folder.parent.iterdir() if f.name.startswith(".")]
    assert os.access(folder, os.R_OK | os.X_OK)
    assert folder.stat().st_mode & 0o777 == 0o755
    for file in folder.rglob("*.safetensors"):
        load_file(file)
    for readme in folder.rglob("README.md"):
        assert "On random numbers, for no epoch." in readme.read_text()


@pytest.mark.parametrize(
    ("variant", "architecture", "args"),
    [
        ("slotcon_r18", "resnet18", None),
        ("resnet18", "resnet18", None),
        ("slotcon_nano", "resnet10t", {"channels", "stem_width", "output_stride"}),
        ("stride", "resnet10t", {"channels", "stem_width", "output_stride"}),
        ("vit", "test_vit", {"img_size", "dynamic_img_size", "global_pool", "fc_norm"}),
    ],
)
def test_the_backbones_config_says_what_it_must_and_no_more(exported, variant, architecture, args):
    config = json.loads((exported[variant][1] / "backbone" / "config.json").read_text())
    assert config["architecture"] == architecture
    assert (config["num_classes"], config["global_pool"]) == (0, "avg")
    assert set(config["model_args"]) == args if args else "model_args" not in config
    said = {"img_size": [SIDE, SIDE], "global_pool": "avg", "fc_norm": False}
    said |= {"output_stride": 8 if variant == "stride" else 16}
    assert args is None or all(config["model_args"][key] == said[key] for key in args & set(said))
    assert config["pretrained_cfg"]["input_size"] == [3, SIDE, SIDE]
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["backbone", "prototypes"])
def test_nothing_is_said_of_timms_own_weights(exported, variant, kind):
    config = json.loads((exported[variant][1] / kind / "config.json").read_text())
    assert set(config["pretrained_cfg"]) <= {
        *("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes"),
        *("pool_size", "first_conv", "classifier", "fixed_input_size"),
    }
    assert not {"tag", "license", "hf_hub_id", "url", "labels", "label_names"} & set(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_of_half_precision(tmp_path, dtype):
    model = trained("slotcon_nano")
    model.teacher.to(dtype)
    folder = write(model, tmp_path / "export")
    teacher = {k: v.float() for k, v in model.teacher.state_dict().items()}
    for kind, prefix in (("backbone", "backbone."), ("prototypes", "")):
        for key, value in load_file(folder / kind / "model.safetensors").items():
            assert torch.equal(value.float(), teacher[prefix + key]), key


def test_export_leaves_the_model_as_it_is(tmp_path):
    model = trained("slotcon_nano").to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    write(model, tmp_path / "export")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.teacher.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    backbone_model(model).bn1.weight.data.zero_()  # a copy, as the prototypes are
    prototype_model(model).prototypes.weight.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_new_export_replaces_the_old_one_whole(tmp_path):
    folder = write(trained("slotcon_nano"), tmp_path / "export")
    (folder / "stale.txt").write_text("old")
    before = contents(folder)
    write(trained("slotcon_nano"), folder)
    after = contents(folder)
    assert set(before) - set(after) == {"stale.txt"}
    assert before["backbone/model.safetensors"] != after["backbone/model.safetensors"]


def test_a_failure_leaves_the_old_export(tmp_path, monkeypatch):
    folder = write(trained("slotcon_nano"), tmp_path / "export")
    before, real, calls = contents(folder), saving.save_for_hf, []

    def fails_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(saving, "save_for_hf", fails_at_the_second)
    with pytest.raises(OSError, match="no space left"):
        write(trained("slotcon_nano"), folder)
    assert len(calls) == 2
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_backbone_that_timm_does_not_know_is_named(tmp_path):
    model = trained(TinyBackbone())
    for what in (backbone_model, prototype_model, lambda m: write(m, tmp_path / "export")):
        with pytest.raises(ValueError, match="the backbone, TinyBackbone, is no timm model"):
            what(model)
    assert not list(tmp_path.iterdir())


def test_a_backbone_whose_average_has_a_norm_of_its_own_is_named(tmp_path):
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    model = SlotCon(timm.create_model("naflexvit_base_patch16_map", num_classes=0, global_pool="", **small), TINY)
    with pytest.raises(ValueError, match="naflexvit_base_patch16_map cannot be exported, since its pooling"):
        write(model, tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_efficientnet"])
def test_any_timm_backbone_with_a_map(name, tmp_path):
    """Also those whose classifier sees another width than their map has, or that were trained on other colours."""
    model = SlotCon(name, TINY).eval()
    folder = export(model, tmp_path / "export", input_size=64, trained="Not trained.")
    x = torch.randn(2, 3, 64, 64)
    dense = timm.create_model(f"local-dir:{folder}/prototypes", pretrained=True, global_pool="").eval()
    config = json.loads((folder / "backbone/config.json").read_text())["pretrained_cfg"]
    with torch.no_grad():
        torch.testing.assert_close(dense(x), model.teacher(x)[1])
        width = timm.create_model(f"local-dir:{folder}/backbone", pretrained=True).eval()(x).shape[1]
    assert f"({width} features, no classifier)" in (folder / "backbone/README.md").read_text()
    assert config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert config["interpolation"] == "bicubic"

"""Files of features in the place of models: the numbers of the probes are those of the models."""

import json

import numpy as np
import pytest
from launched import launched
from PIL import Image

from slotcon_hub.cli import main


def embedded(model, images, output, *options) -> str:
    words = ["--model", str(model), "--images", str(images), "--output", str(output), "--device", "cpu"]
    assert main(["embed", *words, *options]) == 0
    return str(output)


def results(name, file, key="results") -> list:
    return list(json.loads(file.read_text())[key].values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in_context", ["--memory", "30"]),
        ("linear_segmentation", ["--epochs", 3]),
        ("overclustering", ["--clusters", 7, "--seeds", 1]),
    ],
)
def test_dense_protocols_read_maps(backbone, masked, tmp_path, name, options):
    file = embedded(backbone, masked / "images", tmp_path / "x.safetensors", "--dense", "--size", "64")
    words = ["--data", masked / "images", "--masks", masked / "masks", "--size", 64, "--batch-size", 2, *options]
    words += ["--workers", 1, "--output"]
    of_model = [f"training.evaluation.{name}", "--models", backbone, *words, tmp_path / "model.json"]
    of_file = [f"training.evaluation.{name}", "--models", file, *words, tmp_path / "file.json"]
    launched(tmp_path / "log", of_model, of_file)
    (one,), (two,) = (results(name, tmp_path / f"{kind}.json") for kind in ("model", "file"))
    for column, numbers in one.items():
        assert two[column]["miou"] == pytest.approx(numbers["miou"], abs=0.01)
    facts = json.loads((tmp_path / "file.json").read_text())["protocol"]["features"][file]
    assert (facts["model"], facts["stride"], facts["crop"]) == (str(backbone), 16, 64)


def test_probes_read_pooled_features(backbone, tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 9), ("val", 5)):
        for i in range(number):
            place = tmp_path / "data" / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 120, (64, 64, 3))
            pixels[..., i % 2] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    (tmp_path / "data" / "train" / "class0" / "bad.png").write_bytes(b"no image")
    file = embedded(backbone, tmp_path / "data", tmp_path / "x.safetensors")
    words = ["--data", tmp_path / "data", "--workers", 0, "--output"]
    commands = [
        [f"training.evaluation.{name}", "--models", models, *words, tmp_path / f"{name}-{kind}.json"]
        for name in ("knn", "linear")
        for kind, models in (("model", backbone), ("file", file))
    ]
    launched(tmp_path / "log", *commands)
    for name in ("knn", "linear"):
        one, two = (results(name, tmp_path / f"{name}-{kind}.json", "accuracy") for kind in ("model", "file"))
        assert one == two


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", 32], "x.safetensors holds the maps of 64 x 64 pixels, not 32: give --size 64"),
        (["--size", 64, "--baseline"], "--baseline needs a model, but"),
        (
            ["--size", 64, "--models", "/nowhere.safetensors"],
            "/nowhere.safetensors is no file of `slotcon-hub embed`",
        ),
        (["--size", 64, "--models", "pooled"], "holds pooled features: run slotcon-hub embed with --dense"),
        (["--size", 64, "--models", "other"], "has no features of train/0.png: it has those of images below"),
    ],
)
def test_errors_are_one_sentence(backbone, masked, here, tmp_path, options, said):
    import dataclasses

    from training.evaluation import dense, in_context

    images = masked / "images"
    names = {"pooled": tmp_path / "pooled.safetensors", "other": tmp_path / "other.safetensors"}
    chosen = in_context.InContext(
        models=(embedded(backbone, images, tmp_path / "x.safetensors", "--dense", "--size", "64"),),
        data=images,
        masks=masked / "masks",
        size=options[1],
        baseline="--baseline" in options,
        workers=0,
    )
    if "--models" in options:
        name = str(names.get(options[-1], options[-1]))
        if options[-1] == "pooled":
            embedded(backbone, images, name)
        if options[-1] == "other":
            embedded(backbone, images / "val", name, "--dense", "--size", "64")
        chosen = dataclasses.replace(chosen, models=(name,))
    with pytest.raises(ValueError, match=said) as error:
        here(lambda s: dense.evaluate("in_context", s, in_context.measure, in_context.protocol), chosen)
    assert "\n" not in str(error.value)

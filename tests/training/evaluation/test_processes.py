"""The commands launched in two processes: every image counts once, and all numbers are those of one."""

import json

import numpy as np
import pytest
import timm
from launched import launched
from PIL import Image

from slotcon_hub.models.saving import save_model
from training.evaluation import activity, segmentation

IMAGES = 7  # neither processes nor batches divide them


def test_two_processes_give_the_numbers_of_one(prototypes, here, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        for name, shape in (("images", (40 + i // 3, 50, 3)), ("masks", (40 + i // 3, 50))):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = rng.integers(0, 4 if name == "masks" else 256, shape)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    model, images = str(prototypes), str(tmp_path / "images")
    common = {"batch_size": 2, "workers": 1}
    settings = {
        segmentation: {"masks": tmp_path / "masks", "refine": True, "shown": 3, **common},
        activity: {"seed": 1, **common},
    }
    commands = {}
    for module, values in settings.items():
        name = module.__name__.split(".")[-1]
        output, figures = tmp_path / f"one-{name}.json", tmp_path / f"one-{name}"
        here(module.main, module.Settings(model, images, output=output, figures=figures, **values))
        values = {"model": model, "data": images, "output": tmp_path / f"two-{name}.json", **values}
        values["figures"] = tmp_path / f"two-{name}"
        options = [(f"--{key.replace('_', '-')}", str(value)) for key, value in values.items()]
        commands[name] = [word for pair in options for word in pair if word != "True"]
    calls = [[f"training.evaluation.{name}", *options] for name, options in commands.items()]
    said = launched(tmp_path / "two", *calls, processes=2)
    assert said.count("pixel accuracy") == said.count("active in both views") == 1
    for name in commands:
        one, two = (json.loads((tmp_path / f"{n}-{name}.json").read_text()) for n in ("one", "two"))
        assert one.pop("settings") != two.pop("settings")
        assert one == two
        for figure in (tmp_path / f"one-{name}").iterdir():
            assert figure.read_bytes() == (tmp_path / f"two-{name}" / figure.name).read_bytes()


DENSE = {
    "in_context": ["--memory", 30, 100],
    "linear_segmentation": ["--cells", 50, "--epochs", 3],
    "overclustering": ["--clusters", 7, "--seeds", 2],
}
"""The protocols on dense features, and their options."""


@pytest.mark.parametrize(("name", "batch_size"), [*((name, 2) for name in DENSE), ("in_context", 64)])  # for one
def test_dense_protocols_give_the_same_numbers_in_two_processes(name, batch_size, tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", IMAGES), ("val", 5)):
        for i in range(number):
            for kind, shape in (("images", (40, 50, 3)), ("masks", (40, 50))):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
                pixels = rng.choice([0, 1, 3, 255] if kind == "masks" else 256, shape)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / kind / split / f"{i}.png")
    save_model(timm.create_model("slotcon_nano", num_classes=0).eval(), tmp_path / "model", 64)
    options = ["--models", tmp_path / "model", "--data", tmp_path / "images", "--masks", tmp_path / "masks"]
    options += ["--size", 64, "--batch-size", batch_size, "--workers", 0, "--baseline", *DENSE[name]]
    results = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.json"
        words = [f"training.evaluation.{name}", *options, "--output", file]
        said = launched(tmp_path / f"of {processes}", words, processes=processes)
        assert said.count(f"{name} on") == 1
        results.append(json.loads(file.read_text()))
    one, two = results
    assert one.pop("settings") != two.pop("settings")
    assert one == two

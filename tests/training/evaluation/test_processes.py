"""The commands launched in two processes: every picture counts once, and all numbers are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluation import activity, segmentation

ROOT = Path(__file__).parents[3]
PICTURES = 7  # neither processes nor batches divide them
LAUNCHED = """
import json, runpy, sys
for module, options in json.loads(sys.argv[1]).items():
    sys.argv = [module, *options]
    runpy.run_module(f"training.evaluation.{module}", run_name="__main__")
"""


def launch(tmp_path: Path, commands: dict[str, list[str]]) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other in two processes."""
    (tmp_path / "launched.py").write_text(LAUNCHED)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    line = [*launcher, "--main_process_port", "0", str(tmp_path / "launched.py"), json.dumps(commands)]
    config = {"HF_HOME": os.devnull, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **config, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_two_processes_give_the_numbers_of_one(prototypes, here, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
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
    done = launch(tmp_path, commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pixel accuracy") == done.stdout.count("positive pairs") == 1
    for name in commands:
        one, two = (json.loads((tmp_path / f"{n}-{name}.json").read_text()) for n in ("one", "two"))
        assert one.pop("settings") != two.pop("settings")
        assert one == two
        for figure in (tmp_path / f"one-{name}").iterdir():
            assert figure.read_bytes() == (tmp_path / f"two-{name}" / figure.name).read_bytes()

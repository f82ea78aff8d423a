"""Fixtures of what trains: a folder of images, and a run in this process."""

from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from training import pretrain


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for i in range(10):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(image).save(folder / ("deeper" if i % 2 else ".") / f"{i}.jpg", quality=95)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run in this process; Accelerate's state is made anew each time. Figures, half of such a run, on demand."""

    def call(*args: object, figures: bool = False) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        output = tmp_path / "run"
        argv = [str(a) for a in args]
        if "--output" in argv:
            output = Path(argv[argv.index("--output") + 1])
        else:
            argv += ["--output", str(output)]
        with monkeypatch.context() as patch:
            if not figures:
                patch.setattr("training.pretraining.result.draw_curves", lambda *_: None)
                patch.setattr("training.pretraining.preview.draw_groups", lambda *_: None)
            pretrain.main(argv)
        return output

    return call

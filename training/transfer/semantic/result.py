"""What a training ends with: the network, its numbers and a grid of images; and the network read back."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from slotcon_hub.files import atomic_write
from training.evaluation.command import finite
from training.evaluation.segmentation_report import Example
from training.transfer.semantic.evaluation import Predictor
from training.transfer.semantic.model import FCN, Head, create_backbone
from training.transfer.semantic.prepare import Segmentation
from training.transfer.semantic.report import draw_grid, measure, print_tables

__all__ = ["finish", "load"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def finish(job: Segmentation, confusion: Tensor, examples: list[Example]) -> None:
    """Write ``export``, ``results.json`` and ``grid.png`` into the folder of the run, and print the numbers.

    Args:
        job: that is trained.
        confusion: C x C pixels of the test images by predicted and true class.
        examples: for the grid.
    """
    folder, recipe = job.run.folder, job.recipe
    numbers = measure(confusion, job.data.classes)
    with atomic_write(folder / "export") as export:
        _save(job, export)
    protocol = {"test_images": len(job.data.val), "scale": recipe.test_scale, "window": recipe.window}
    results = {**numbers, "protocol": {**protocol, "stride": recipe.window_stride}, "confusion": confusion.tolist()}
    with atomic_write(folder / "results.json") as new:
        new.write_text(json.dumps(finite(results), indent=2) + "\n")
    draw_grid(examples, job.data.classes, folder / "grid.png")
    print_tables(numbers)
    print(
        f"{folder / 'grid.png'} shows images; the network is loaded by\n"
        "from training.transfer.semantic.result import load\n"
        f'predictor = load("{folder / "export"}")  # uint8 3 x H x W to H x W classes'
    )


def _save(job: Segmentation, folder: Path) -> None:
    """Write the weights, by MMSegmentation's names, and all that they are to be used with."""
    net, recipe, test = job.net, job.recipe, job.predictor
    folder.mkdir()
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)
    config = {
        "backbone": recipe.backbone,
        "output_stride": recipe.output_stride,
        "head": asdict(recipe.head),
        "auxiliary": asdict(recipe.auxiliary) if recipe.auxiliary else None,
        "align_corners": net.align_corners,
        "classes": job.data.classes,
        **job.cfg,
        **{name: getattr(test, name) for name in ("scale", "window", "stride")},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load(folder: str | Path) -> Predictor:
    """Read the network of an ``export`` back, with its tests, on the CPU.

    Raises:
        ValueError: the backbone is not known here, or the weights do not fit.
        OSError: a file is missing.
    """
    config: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text())
    backbone = create_backbone(config["backbone"], config["output_stride"], pretrained=False)
    auxiliary = Head(**config["auxiliary"]) if config["auxiliary"] else None
    net = FCN(
        backbone, len(config["classes"]), Head(**config["head"]), auxiliary, align_corners=config["align_corners"]
    )
    try:
        net.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit its {CONFIG}: {' '.join(str(error).split())}") from None
    scale = tuple(config["scale"]) if config["scale"] else None
    cfg = {name: config[name] for name in ("mean", "std")}
    return Predictor(net.eval(), cfg, scale, config["window"], config["stride"])

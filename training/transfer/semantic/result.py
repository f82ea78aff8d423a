"""Results of a training (export, metrics, grid of images), and loading of the export."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from slotcon_hub.files import atomic_write
from training.evaluation.command import finite
from training.evaluation.segmentation_report import Example
from training.transfer.backbones import architecture_of
from training.transfer.semantic.evaluation import Predictor
from training.transfer.semantic.model import FCN, Head, create_backbone
from training.transfer.semantic.prepare import Segmentation
from training.transfer.semantic.report import draw_grid, measure, print_tables

__all__ = ["finish", "load"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def finish(job: Segmentation, confusion: Tensor, examples: list[Example]) -> None:
    """Write ``export``, ``results.json`` and ``grid.png`` into the folder of the run, and print the results.

    Args:
        job: the finished training.
        confusion: C x C pixel counts of the test images, predicted x true class.
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
        f"{folder / 'grid.png'} shows predictions; load the network by\n"
        "from training.transfer.semantic.result import load\n"
        f'predictor = load("{folder / "export"}")  # uint8 3 x H x W to H x W classes'
    )


def _save(job: Segmentation, folder: Path) -> None:
    """Write the weights with MMSegmentation's names, and the configuration."""
    net, recipe, test = job.net, job.recipe, job.predictor
    folder.mkdir()
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)
    architecture, args = architecture_of(net.backbone)
    config = {
        "backbone": architecture,
        "backbone_args": args,
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
    """Load an ``export`` on the CPU.

    Raises:
        ValueError: the backbone is unknown, or the weights do not match.
        OSError: a file is missing.
    """
    config: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text())
    args = {"output_stride": config["output_stride"], **config.get("backbone_args", {})}
    backbone = create_backbone(config["backbone"], pretrained=False, **args)
    auxiliary = Head(**config["auxiliary"]) if config["auxiliary"] else None
    net = FCN(
        backbone, len(config["classes"]), Head(**config["head"]), auxiliary, align_corners=config["align_corners"]
    )
    try:
        net.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{folder}: {WEIGHTS} does not match {CONFIG}: {' '.join(str(error).split())}") from None
    scale = tuple(config["scale"]) if config["scale"] else None
    cfg = {name: config[name] for name in ("mean", "std")}
    return Predictor(net.eval(), cfg, scale, config["window"], config["stride"])

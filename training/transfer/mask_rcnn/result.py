"""Results of a training (export, metrics, detections, page), and loading of the export."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from slotcon_hub.files import atomic_write
from slotcon_hub.weights.table import Result
from training.engine.memory_format import make_channels_last
from training.evaluation.command import finite
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.evaluation import measure, print_tables, write_results
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.page import write_page
from training.transfer.mask_rcnn.prepare import Detection

__all__ = ["card_results", "finish", "load", "save"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def finish(job: Detection, results: list[dict[str, Any]]) -> None:
    """Write ``export``, ``results.json``, ``detections.json`` and ``detections.html``; print the results.

    Args:
        job: the finished training.
        results: detections in the val images, in COCO's format.
    """
    folder, recipe = job.run.folder, job.recipe
    numbers = measure(job.val, results)
    save(job.detector, folder / "export")
    write_results(folder / "detections.json", results)
    write_page(folder / "detections.html", folder.name, numbers, job.val, results, most=recipe.shown)
    protocol = {"test_images": len(job.val), "test_side": recipe.test_side, "longest_side": recipe.longest_side}
    with atomic_write(folder / "results.json") as new:
        new.write_text(json.dumps(finite({**numbers, "protocol": protocol}), indent=2) + "\n")
    print_tables(numbers)
    print(
        f"{folder / 'detections.html'} shows images; the detector is loaded by\n"
        "from training.transfer.mask_rcnn.result import load\n"
        f'detector = load("{folder / "export"}")  # detector.detect([uint8 3 x H x W], [(height, width)])'
    )


def save(detector: MaskRCNN, folder: Path) -> None:
    """Write weights as safetensors and the configuration as JSON, atomically."""
    with atomic_write(folder) as new:
        new.mkdir()
        state = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
        save_file(state, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(asdict(detector.config), indent=2) + "\n")


def load(folder: str | Path) -> MaskRCNN:
    """Load a detector on the CPU, in eval mode.

    Args:
        folder: of :func:`save`, such as the ``export`` of a run.

    Raises:
        ValueError: the folder holds no detector, or weights and configuration do not match.
    """
    folder = Path(folder)
    try:
        config = MaskRCNNConfig(**json.loads((folder / CONFIG).read_text()))
        detector = MaskRCNN(config)
        detector.load_state_dict(load_file(folder / WEIGHTS))
        make_channels_last(detector, torch.device("cpu"))
    except OSError as error:
        raise ValueError(f"{folder} holds no detector ({error.strerror or error}): name a run's export") from None
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / CONFIG} and {WEIGHTS} do not fit each other ({reason})") from None
    return detector.eval()


def card_results(numbers: dict[str, Any], dataset: str, protocol: str, command: str) -> Iterable[Result]:
    """Yield the rows of a backbone's model card: box AP and mask AP.

    Args:
        numbers: of :func:`training.transfer.mask_rcnn.evaluation.measure`, or a run's ``results.json``.
        dataset: name on the card, such as "COCO val2017".
        protocol: short description of the training.
        command: of the training.
    """
    for kind, metric in (("boxes", "box AP"), ("masks", "mask AP")):
        yield Result(dataset, metric, round(numbers[kind]["AP"], 1), protocol, command=command)

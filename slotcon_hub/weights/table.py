"""The table of published weights: origin, recipe, results and location of each."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["ORGANISATION", "ROWS", "Result", "Weights", "find", "full_name", "packaged", "repository", "trusted"]

# Read once, since the repository and the decision to trust it must agree: otherwise an unclaimed name on the Hub
# could be trusted.
_CHOSEN = os.environ.get("SLOTCON_HUB_ORG", "").strip()
ORGANISATION = _CHOSEN or "slotcon"
"""Owner of the repositories on the Hub; set ``SLOTCON_HUB_ORG`` to another before the first import."""


@dataclass(frozen=True)
class Result:
    """One number of an evaluation, and its source."""

    dataset: str
    """The data of the evaluation; ``slotcon_hub/publishing/card_metadata.py`` has its id on the Hub."""
    metric: str
    """Such as "box AP"; ``card_metadata.py`` has its id too."""
    value: float
    """In per cent."""
    protocol: str
    """Model and protocol, in a few words."""
    untrained: float | None = None
    """Value of the random-init baseline, if known."""
    command: str | None = None
    """Command that measured it with this package; None for a number reported in the paper."""

    @property
    def source(self) -> str:
        """Whether it is reported or measured, in words."""
        return "reported by the authors" if self.command is None else "measured with this package"


@dataclass(frozen=True)
class Weights:
    """One set of weights of an architecture, named ``<architecture>.<tag>``."""

    architecture: str
    """Name in timm's registry."""
    tag: str
    """Data and length of the pre-training."""
    data: str
    """Name of the pre-training data."""
    images: str
    """How many."""
    datasets: tuple[str, ...]
    """The Hub's ids of these data."""
    epochs: int
    """Of pre-training."""
    prototypes: int
    """K of the pre-training, also for a backbone alone."""
    command: str
    """This package's command for the pre-training."""
    recipe: str
    """Its settings, in a sentence or two."""
    cost: str
    """Time and hardware, in a sentence or two, with the source."""
    hidden_dim: int = 4096
    """Hidden channels of the projector."""
    out_dim: int = 256
    """D, of projections and prototypes."""
    results: tuple[Result, ...] = ()
    """Results of these weights; a prototype model does not repeat those of its backbone."""
    sha256: str | None = None
    """SHA-256 of ``model.safetensors`` on the Hub; None until it is published."""
    packaged_sha256: str | None = None
    """SHA-256 of the file in this package; None if there is none."""
    # The authors' page names no licence for the weights alone, so none is claimed here. They were trained for
    # research on images with terms of their own: COCO's are Flickr's, ImageNet's allow only non-commercial
    # research.
    licence: str = "other"
    """The Hub's id of the licence."""
    origin: str = "https://github.com/CVMI-Lab/SlotCon"
    """URL of the authors' checkpoints; for weights in this package, of the data."""
    paper: str = "arXiv:2205.15288"
    """Who made the recipe."""

    @property
    def name(self) -> str:
        """``<architecture>.<tag>``, for ``timm.create_model``."""
        return f"{self.architecture}.{self.tag}"

    @property
    def has_prototypes(self) -> bool:
        """Whether the network has projector and prototypes."""
        return self.architecture.endswith("_proto")

    @property
    def backbone(self) -> "Weights":
        """The row of the backbone alone; a backbone's own row."""
        alone = find(self.architecture.removesuffix("_proto"), self.tag)
        assert alone is not None, f"{self.name} has no row without prototypes"
        return alone


_RECIPE = (
    "Batches of 512 images, two views of 224 px of each; LARS, learning rate 2.0 after 5 epochs of warm-up, then "
    "a cosine to 1e-6; weight decay 1e-5; the teacher's momentum rises from 0.99 to 1."
)
_COST = (
    "The authors report 2 min 23 s an epoch and 16.0 GB a GPU for COCO train2017 at batch 1024, on 8 GeForce RTX "
    "3090 with mixed precision (supplementary E). These weights were trained at batch 512. Pre-training takes "
    "several GPUs for long, and causes emissions accordingly; it is done once."
)
_DETECTOR = "Mask R-CNN R50-FPN 1x on the backbone, all fine-tuned"
_FCN = "FCN on the backbone, all fine-tuned"


def _authors(
    tag: str, data: str, images: str, dataset: str, epochs: int, prototypes: int, box_ap: float, mask_ap: float
) -> Weights:
    return Weights(
        "slotcon_r50",
        tag,
        data,
        images,
        (dataset,),
        epochs,
        prototypes,
        command=f"accelerate launch training/pretrain.py {tag} --data IMAGES",
        recipe=_RECIPE,
        cost=_COST,
        results=(
            Result("COCO val2017", "box AP", box_ap, _DETECTOR),
            Result("COCO val2017", "mask AP", mask_ap, _DETECTOR),
        ),
    )


_IN1K = ("ImageNet-1k", "1,281,167", "ILSVRC/imagenet-1k")
_COCO = _authors("coco_800ep", "COCO train2017", "118,287", "coco", 800, 256, 41.0, 37.0)
_SEGMENTATION = (
    Result("Cityscapes val", "mIoU", 76.2, _FCN, untrained=65.3),
    Result("PASCAL VOC 2012 val", "mIoU", 71.6, _FCN, untrained=39.5),
    Result("ADE20K val", "mIoU", 39.0, _FCN),
)
_PUBLISHED = (  # the first row of an architecture is its default
    replace(_COCO, results=_COCO.results + _SEGMENTATION),
    _authors("cocoplus_800ep", "COCO train+unlabeled2017", "about 241,690", "coco", 800, 256, 41.8, 37.8),
    _authors("in1k_100ep", *_IN1K, 100, 2048, 41.4, 37.2),
    _authors("in1k_200ep", *_IN1K, 200, 2048, 41.8, 37.8),
)


def _nano(
    epochs: int,
    warmup: str,
    recipe: str,
    cost: str,
    accuracies: dict[str, tuple[float, float]],
    sha256: str,
    options: str = "",
) -> Weights:
    name = f"imagenette_{epochs}ep"
    protocols = {"knn": "20 nearest neighbours", "linear": "linear classifier"}
    return Weights(
        "slotcon_nano",
        name,
        "Imagenette",
        "9,469",
        ("frgfm/imagenette",),
        epochs,
        64,
        command=f"accelerate launch training/pretrain.py {options or name} --data IMAGENETTE",
        recipe="Images with a short side of 160 px, in batches of 64, two views of 96 px of each; LARS, learning "
        f"rate 2.0 after {warmup} of warm-up, then a cosine to 1e-6; weight decay 1e-5; temperature of the targets "
        f"0.04; {recipe} The file holds the weights in half precision.",
        cost=cost,
        hidden_dim=512,
        out_dim=128,
        results=tuple(
            Result(
                "Imagenette validation",
                "top-1 accuracy",
                accuracy,
                f"{protocols[measure]}, frozen features",
                untrained=untrained,
                command=f"python -m training.evaluation.{measure} --models slotcon_nano.{name} --data IMAGENETTE "
                "--baseline",
            )
            for measure, (accuracy, untrained) in accuracies.items()
        ),
        packaged_sha256=sha256,
        licence="apache-2.0",
        origin="https://github.com/fastai/imagenette",
    )


_NANO = (
    _nano(
        180,
        "2 epochs",
        "the teacher's momentum rises from 0.99 to 1; layers in bf16. The run of imagenette_80ep, and after it a "
        "second schedule of 100 epochs, from its student and teacher.",
        "Three and a half hours on one core of an x86-64 CPU.",
        {"knn": (80.0, 42.6), "linear": (82.8, 51.0)},
        "5a373349ebc8993ab40917bd359f2ec34c29c88a4ea7c03199017662f7a2f7c2",
        "imagenette_80ep --epochs 100 --continue-from RUN_OF_80_EPOCHS --continue-at 0",
    ),
    _nano(
        80,
        "2 epochs",
        "the teacher's momentum rises from 0.99 to 1; layers in bf16.",
        "An hour and a half on one core of an x86-64 CPU.",
        {"knn": (71.1, 42.6), "linear": (77.8, 51.0)},
        "6dba4641feaf0d0e12d253ad83df393d247e561440c11b0dc7c09b64988013a8",
    ),
    _nano(
        20,
        "1 epoch",
        "the teacher's momentum rises from 0.97 to 1. They were trained with timm's LARS; the "
        "command now uses that of the published code, so it gives other weights.",
        "About an hour on two cores of an x86-64 CPU.",
        {"knn": (60.5, 42.6), "linear": (72.0, 51.0)},
        "5e230ee9ce82c3363911d38af92c3a8f2c4616850236fcfaa0ae1034deb9c251",
    ),
)
_BACKBONES = (*_NANO, *_PUBLISHED)
ROWS = (*_BACKBONES, *(replace(row, architecture=f"{row.architecture}_proto", results=()) for row in _BACKBONES))


def find(architecture: str, tag: str | None = None) -> Weights | None:
    """The row of an architecture and a tag (by default its first); None if there is none."""
    rows = (row for row in ROWS if row.architecture == architecture and tag in (None, "", row.tag))
    return next(rows, None)


def full_name(name: str) -> str:
    """Complete a name to ``<architecture>.<tag>`` by the default tag.

    Raises:
        ValueError: it has no tag, and its architecture no default one.
    """
    architecture, _, tag = name.partition(".")
    if tag:
        return name
    row = find(architecture)
    if row is None:
        raise ValueError(f"{name!r} has no default tag: add one of yours, such as {architecture}.mine")
    return row.name


def repository(name: str) -> str:
    """The Hub's id of the weights of this name."""
    return f"{ORGANISATION}/{name}"


def trusted(row: Weights) -> bool:
    """Whether these weights may be downloaded: their SHA-256 is known, or the user has set the organisation.

    Otherwise anybody could claim the repository's name on the Hub.
    """
    return row.sha256 is not None or bool(_CHOSEN)


def packaged(row: Weights) -> Path | None:
    """The file of these weights in this package; None if there is none.

    A backbone and its prototype model share one file: the whole teacher, in half precision.
    """
    if row.packaged_sha256 is None:
        return None
    teacher = f"{row.architecture.removesuffix('_proto')}_proto.{row.tag}.safetensors"
    return Path(__file__).parent / "packaged" / teacher

"""The published weights, as rows: where they come from, what the authors report of them, where they are found."""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ORGANISATION", "ROWS", "Weights", "find", "packaged", "repository", "trusted"]

ORGANISATION = os.environ.get("SLOTCON_HUB_ORG") or "slotcon"
"""Owner of the repositories on the Hub; ``SLOTCON_HUB_ORG`` names another, before the first import."""


@dataclass(frozen=True)
class Weights:
    """One set of weights of an architecture, named ``<architecture>.<tag>``."""

    architecture: str
    """Of timm's registry."""
    tag: str
    """Data and length of the pre-training."""
    data: str
    """What it was pre-trained on, without labels."""
    epochs: int
    """Of pre-training, at batch size 512."""
    prototypes: int
    """K of the pre-training; a backbone alone does not hold them."""
    box_ap: float
    """COCO box AP of Mask R-CNN R50-FPN 1x on top, as reported in the paper."""
    mask_ap: float
    """Mask AP of the same."""
    sha256: str | None = None
    """Of ``model.safetensors`` on the Hub; None until it is published."""
    packaged_sha256: str | None = None
    """Of the file that comes with this package; None where there is none."""
    # The authors' page names no licence for the weights alone, so none is claimed here. They were made for research
    # from pictures whose own terms apply: COCO's are Flickr's, ImageNet's allow non-commercial research only.
    licence: str = "other"
    """As the Hub spells it."""
    origin: str = "https://github.com/CVMI-Lab/SlotCon"
    """The authors' page, with their checkpoints."""
    paper: str = "arXiv:2205.15288"
    """Whose recipe it is."""

    @property
    def name(self) -> str:
        """``<architecture>.<tag>``, for ``timm.create_model``."""
        return f"{self.architecture}.{self.tag}"

    @property
    def has_prototypes(self) -> bool:
        """Whether projector and prototypes are part of the network."""
        return self.architecture.endswith("_proto")


_PUBLISHED = (  # the first is the default
    ("coco_800ep", "COCO train2017", 800, 256, 41.0, 37.0),
    ("cocoplus_800ep", "COCO train2017 + unlabeled2017", 800, 256, 41.8, 37.8),
    ("in1k_100ep", "ImageNet-1k", 100, 2048, 41.4, 37.2),
    ("in1k_200ep", "ImageNet-1k", 200, 2048, 41.8, 37.8),
)

ROWS = tuple(Weights(name, *facts) for name in ("slotcon_r50", "slotcon_r50_proto") for facts in _PUBLISHED)


def find(architecture: str, tag: str | None = None) -> Weights | None:
    """The row of an architecture with a tag, by default its first; None where there is no such row."""
    rows = (row for row in ROWS if row.architecture == architecture and tag in (None, "", row.tag))
    return next(rows, None)


def repository(name: str) -> str:
    """The Hub's id of the weights of this name."""
    return f"{ORGANISATION}/{name}"


def trusted(row: Weights) -> bool:
    """Whether the Hub is asked for these weights: their SHA-256 is known, or the user has named the organisation.

    A name on the Hub belongs to whoever takes it first, so that without either nobody vouches for what is there.
    """
    return row.sha256 is not None or bool(os.environ.get("SLOTCON_HUB_ORG"))


def packaged(row: Weights) -> Path | None:
    """The file of these weights in this package; None if it does not come with it.

    One file serves a backbone and its prototype model: the whole teacher, in half precision.
    """
    if row.packaged_sha256 is None:
        return None
    teacher = f"{row.architecture.removesuffix('_proto')}_proto.{row.tag}.safetensors"
    return Path(__file__).parent / "packaged" / teacher

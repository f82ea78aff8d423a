"""Folder layouts and image counts of well-known data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LAYOUTS", "Layout", "LayoutName"]

LayoutName = Literal["coco", "coco+", "imagenet", "bdd100k"]


@dataclass(frozen=True)
class Layout:
    """The folders of a data set, as paths relative to its root."""

    title: str
    folders: tuple[str, ...]
    """Folders of training images."""
    others: tuple[str, ...]
    """Folders of other splits: if only these exist, the data set is incomplete."""
    images: int
    """Number of training images."""

    def find(self, data: Path) -> tuple[Path, ...]:
        """Find the folders of training images.

        Args:
            data: the root of the data set, or a folder between the root and the images.

        Returns:
            ``(data,)`` if ``data`` does not have this layout.

        Raises:
            ValueError: some training folders are missing.
        """
        whole = data.absolute()
        for root in (data, *whole.parents):
            parts = [folder for folder in (*self.folders, *self.others) if (root / folder).is_dir()]
            there = [folder for folder in parts if whole in (root / folder).absolute().parents]
            missing = [folder for folder in self.folders if folder not in there]
            if there and missing:
                raise ValueError(
                    f"{root} holds {', '.join(there)}, but for {self.title} no {', '.join(missing)}: complete it, "
                    "or set --data to the image folder itself, with --layout None"
                )
            if there:
                return tuple(root / folder for folder in self.folders)
        return (data,)

    def check_count(self, data: Path, found: int) -> str | None:
        """Return a warning if ``data`` has this layout but ``found`` is not its number of training images."""
        within = data.is_dir() and any(data.resolve().match(folder) for folder in self.folders)
        if found == self.images or not (within or self.find(data) != (data,)):
            return None
        return (
            f"{self.title} has {self.images:,} images, {found:,} were found in {data}: check for missing or extra "
            "files (--layout None if other images are meant)"
        )


LAYOUTS: dict[LayoutName, Layout] = {
    "coco": Layout("COCO train2017", ("train2017",), ("val2017", "test2017", "unlabeled2017"), 118_287),
    "coco+": Layout(
        "COCO train2017 + unlabeled2017", ("train2017", "unlabeled2017"), ("val2017", "test2017"), 241_690
    ),
    "imagenet": Layout("ImageNet-1k train", ("train",), ("val", "test"), 1_281_167),
    "bdd100k": Layout("BDD100K train", ("images/100k/train",), ("images/100k/val", "images/100k/test"), 70_000),
}

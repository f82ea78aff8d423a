"""Where well-known data sets keep their images, and how many they have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LAYOUTS", "Layout", "LayoutName"]

LayoutName = Literal["coco", "coco+", "imagenet", "bdd100k"]


@dataclass(frozen=True)
class Layout:
    """The folders of a data set."""

    title: str
    folders: tuple[str, ...]
    """Of the images to train on, below that of the data set."""
    others: tuple[str, ...]
    """Beside them: where one of these is found alone, the data set is not complete."""
    images: int
    """To train on."""

    def find(self, data: Path) -> tuple[Path, ...]:
        """Find the folders of the images to train on.

        Args:
            data: the folder of the data set, or one between it and those of the images.

        Returns:
            ``data`` itself, if it is neither.

        Raises:
            ValueError: only others are there.
        """
        whole = data.absolute()
        for root in (data, *whole.parents):
            parts = [folder for folder in (*self.folders, *self.others) if (root / folder).is_dir()]
            there = [folder for folder in parts if whole in (root / folder).absolute().parents]
            missing = [folder for folder in self.folders if folder not in there]
            if there and missing:
                raise ValueError(
                    f"{root} holds {', '.join(there)}, but for {self.title} no {', '.join(missing)}: complete it, "
                    "or give --data the folder of the very images you mean, and --layout None"
                )
            if there:
                return tuple(root / folder for folder in self.folders)
        return (data,)

    def miscount(self, data: Path, found: int) -> str | None:
        """Say so where ``data``, this data set or the folder of its images, has another number than it should."""
        within = data.is_dir() and any(data.resolve().match(folder) for folder in self.folders)
        if found == self.images or not (within or self.find(data) != (data,)):
            return None
        return (
            f"{self.title} has {self.images:,} images, {found:,} were found in {data}: is it complete, and "
            "nothing else there? (--layout None if other images are meant)"
        )


LAYOUTS: dict[LayoutName, Layout] = {
    "coco": Layout("COCO train2017", ("train2017",), ("val2017", "test2017", "unlabeled2017"), 118_287),
    "coco+": Layout(
        "COCO train2017 + unlabeled2017", ("train2017", "unlabeled2017"), ("val2017", "test2017"), 241_690
    ),
    "imagenet": Layout("ImageNet-1k train", ("train",), ("val", "test"), 1_281_167),
    "bdd100k": Layout("BDD100K train", ("images/100k/train",), ("images/100k/val", "images/100k/test"), 70_000),
}

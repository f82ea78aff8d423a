"""Fine-tune a timm backbone with a small segmentation head; ``accelerate launch`` runs it on several GPUs."""

from pathlib import Path

import accelerate
import timm
import torch.nn.functional as F
import tyro
from torch import Tensor, nn, optim, utils
from torchvision.transforms import v2

import slotcon_hub  # noqa: F401  (registers the models)
from training.data.masks import LabeledImages
from training.evaluation import segmentation


class Head(nn.ModuleList):
    """For each of a backbone's maps, a layer that gives scores of the classes."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Sum the scores, B x C x H x W, at the size of the first map."""
        return sum(F.interpolate(m(x), maps[0].shape[2:], mode="bilinear") for m, x in zip(self, maps, strict=True))


def main(
    train: Path, val: Path, classes: int, output: Path, model: str = "slotcon_nano", scratch: bool = False,
    epochs: int = 20, batch_size: int = 16, lr: float = 1e-3, workers: int = 4,
) -> None:  # fmt: skip
    """Fine-tune a timm backbone and a small segmentation head on the images of TRAIN, measure on those of VAL.

    Either has images/ and masks/, where a PNG file of the image's name holds labels below CLASSES, 255 for none.
    """
    accelerator = accelerate.Accelerator()
    accelerate.utils.set_seed(0)
    try:
        if output.exists():
            raise ValueError(f"{output} exists: choose another --output")
        train_set, val_set = (LabeledImages(part / "images", part / "masks") for part in (train, val))
        backbone = timm.create_model(model, pretrained=not scratch, features_only=True, out_indices=(1, 2, 3, 4))
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    config = timm.data.resolve_data_config({}, model=backbone)
    train_set.transform = v2.RandomResizedCrop(config["input_size"][1:], scale=(0.25, 1))
    net = nn.Sequential(backbone, Head(nn.Conv2d(c, classes, 3, 1, 1) for c in backbone.feature_info.channels()))
    net.pretrained_cfg = config
    loader = utils.data.DataLoader(train_set, batch_size, shuffle=True, num_workers=workers)
    wrapped, optimizer, loader = accelerator.prepare(net, optim.AdamW(net.parameters(), lr), loader)
    for _ in range(epochs):
        for x, y in accelerate.utils.tqdm(loader):
            scores = wrapped(v2.functional.normalize(x / 255, config["mean"], config["std"]))
            loss = F.cross_entropy(F.interpolate(scores, y.shape[1:], mode="bilinear"), y.long(), ignore_index=255)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    found = segmentation.evaluate(net.eval(), val_set, classes, classes, match=range(classes))
    accelerator.print(f"held-out mIoU {found.miou:.3f}, pixel accuracy {found.pixel_accuracy:.3f}")
    accelerator.save_model(net, output)


if __name__ == "__main__":
    tyro.cli(main)

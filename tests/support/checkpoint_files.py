"""Checkpoints as they exist in the wild, whole and damaged, and what an error about them must be."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from slotcon_hub import SlotConConfig
from slotcon_hub.weights import store

SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)


def official_model(config: SlotConConfig = SMALL, prefix: str = "module.") -> dict[str, Tensor]:
    """Names and shapes of the authors' model on a ResNet-18, in their order; every tensor is different."""
    hidden, dim = config.hidden_dim, config.out_dim
    with torch.device("meta"):
        encoder = torchvision.models.resnet18().state_dict()
    encoder = {k: v for k, v in encoder.items() if not k.startswith("fc.")}
    model: dict[str, Tensor] = {f"encoder_{side}.{k}": v for side in "qk" for k, v in encoder.items()}

    def mlp(name: str, *conv: int, channels: int) -> None:
        for i, (outputs, inputs) in {0: (hidden, channels), 3: (hidden, hidden), 6: (dim, hidden)}.items():
            model[f"{name}.mlp.{i}.weight"] = torch.empty(outputs, inputs, *conv)
            model[f"{name}.mlp.{i}.bias"] = torch.empty(outputs)
            if i < 6:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    model[f"{name}.mlp.{i + 1}.{part}"] = torch.empty(hidden)
                model[f"{name}.mlp.{i + 1}.num_batches_tracked"] = torch.tensor(0)

    mlp("projector_q", 1, 1, channels=512)
    mlp("projector_k", 1, 1, channels=512)
    mlp("predictor_slot", channels=dim)
    model["center"] = torch.empty(1, config.num_prototypes)
    for side in "qk":
        model[f"grouping_{side}.slot_embed.weight"] = torch.empty(config.num_prototypes, dim)
    return {
        prefix + k: torch.randn(v.shape) if v.is_floating_point() else torch.tensor(i)
        for i, (k, v) in enumerate(model.items())
    }


def official_file(folder: Path, model: dict[str, Tensor]) -> Path:
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    checkpoint = {
        "args": argparse.Namespace(arch="resnet50", epochs=800, crop_size=224, lr=1.0, fp16=True, data_dir=None),
        "model": model,
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 7, "base_lrs": [1.0]},
        "epoch": 800,
        "scaler": {"scale": 65536.0, "growth_tracker": 3},
    }
    torch.save(checkpoint, folder / "ckpt_epoch_800.pth")
    return folder / "ckpt_epoch_800.pth"


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error).split()) < 60  # words: paths are as long as they are
    assert "weights_only" not in str(error)


def possible() -> dict[str, Tensor]:
    """An authors' model whose variances are positive, as they are after training."""
    return {k: v.abs() if k.endswith("running_var") else v for k, v in official_model().items()}


def official(folder: Path) -> Path:
    return official_file(folder, possible())


def backbone_only(folder: Path) -> Path:
    state = {k.replace("module.", ""): v for k, v in possible().items() if "encoder_k" in k}
    torch.save({"state_dict": state}, folder / "backbone.pth")
    return folder / "backbone.pth"


def flip(folder: Path) -> None:
    path = folder / store.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

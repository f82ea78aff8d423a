"""Export the teacher of a trained SlotCon: a plain timm backbone, and a prototype model."""

import json
from pathlib import Path
from typing import Any

import timm
from torch import nn

from slotcon_hub.files import atomic_write
from slotcon_hub.models.resnet import SlotConPrototypes
from slotcon_hub.models.saving import save_backbone, save_model, timm_architecture, to_plain_timm
from slotcon_hub.objective.slotcon import SlotCon

__all__ = ["backbone_model", "export", "prototype_model"]


def backbone_model(model: SlotCon) -> nn.Module:
    """The teacher's backbone as timm's own model, without a classifier, in eval mode.

    Raises:
        ValueError: the backbone is not a timm model, or its pooling has parameters.
    """
    return to_plain_timm(model.teacher.backbone)[0]


def prototype_model(model: SlotCon, global_pool: str = "avg") -> SlotConPrototypes:
    """The teacher's backbone, projector and prototypes, in eval mode.

    Args:
        model: with a timm backbone.
        global_pool: "" for the dense map of similarities.

    Raises:
        ValueError: the backbone is not a timm model.
    """
    architecture, args = timm_architecture(model.teacher.backbone)
    name = f"{architecture}_proto"
    if not timm.is_model(name):
        name, args = "slotcon_proto", {"backbone": architecture, **args}
    config = model.config
    prototypes: Any = timm.create_model(
        name,
        num_classes=config.num_prototypes,
        global_pool=global_pool,
        hidden_dim=config.hidden_dim,
        out_dim=config.out_dim,
        **args,
    )
    prototypes.load_state_dict(model.teacher.state_dict())
    return prototypes.eval()


def export(model: SlotCon, folder: str | Path, *, input_size: int, trained: str) -> Path:
    """Write ``backbone/`` and ``prototypes/``, each ``model.safetensors``, ``config.json`` and ``README.md``.

    The backbone loads in plain timm, ``timm.create_model("local-dir:<folder>/backbone", pretrained=True)``; the
    prototypes likewise once ``slotcon_hub`` is imported. The write is atomic.

    Args:
        model: with a timm backbone.
        folder: replaced if it exists.
        input_size: side of the views it was trained on, in pixels.
        trained: a sentence for the README on data and length of the training.

    Returns:
        The folder.
    """
    folder = Path(folder)
    with atomic_write(folder) as staging:
        save_backbone(model.teacher.backbone, staging / "backbone", input_size)
        save_model(prototype_model(model), staging / "prototypes", input_size)
        for part in staging.iterdir():
            config = json.loads((part / "config.json").read_text())
            # Not num_features, which timm writes: a few models pool to another width than their map has.
            config["features"] = model.teacher.backbone.head_hidden_size
            (part / "README.md").write_text(_readme(config, part.name, trained, model.teacher.returns_map))
    return folder


def _readme(config: dict[str, Any], kind: str, trained: str, returns_map: bool) -> str:
    if kind == "backbone":
        what = f"A {config['architecture']} backbone ({config['features']} features, no classifier)"
        inside = "forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]"
        dense = "forward_features(x)" if returns_map else inside
        needs, output = "import timm", f"B x C features; model.{dense} gives the map"
    else:
        what = f"A backbone with projector and {config['num_classes']} semantic prototypes"
        needs, output = "import slotcon_hub\nimport timm", "B x K similarities; global_pool='' gives the map"
    return f"""---
library_name: timm
tags:
- slotcon
---
# SlotCon {kind}

{what}, pre-trained without labels by SlotCon (Wen et al., NeurIPS 2022). {trained}

```python
{needs}

model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()
model(x)  # {output}
```
"""

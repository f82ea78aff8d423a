"""State dicts from one naming to another: pure functions, and the one reader of untrusted checkpoint files."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_official", "read_checkpoint"]

# The authors' names, as published, and ours.
_OFFICIAL = {
    r"encoder_q\.": "student.backbone.",
    r"encoder_k\.": "teacher.backbone.",
    r"projector_q\.mlp\.": "student.projector.mlp.",
    r"projector_k\.mlp\.": "teacher.projector.mlp.",
    r"grouping_q\.slot_embed\.": "student.prototypes.",
    r"grouping_k\.slot_embed\.": "teacher.prototypes.",
    r"predictor_slot\.mlp\.": "predictor.mlp.",
    r"center$": "center",
}


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint pickle without running any code in it.

    Tensors, plain containers and the ``argparse.Namespace`` of the authors' files are all that is accepted.

    Args:
        path: a file written by ``torch.save``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else, such as code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        refused = re.search(r"GLOBAL (\S+)", str(error))  # torch's own words advise to run the code
        reason = f"it holds {refused[1]}" if refused else "it is damaged, or something else"
        raise ValueError(
            f"{path} is not a checkpoint of tensors and plain values, so it was not loaded ({reason}); "
            "download it again, and if it comes from somebody you do not know, leave it"
        ) from None


def from_official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn an authors' full checkpoint into a state dict that loads strictly into :class:`SlotCon`.

    Args:
        checkpoint: the loaded mapping, or its ``model`` entry, with or without the ``module.`` prefix of
            DistributedDataParallel.

    Returns:
        Student, teacher, predictor and centre; tensors and dtypes are those of the checkpoint.

    Raises:
        ValueError: a key is unknown, or a whole part is absent.
    """
    model = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(model, Mapping):
        raise ValueError(f"an official SlotCon checkpoint holds named tensors, not a {type(model).__name__}")
    converted = {}
    for key, value in model.items():
        name = str(key).removeprefix("module.")
        prefix = next((p for p in _OFFICIAL if re.match(p, name)), None)
        if prefix is None or not isinstance(value, Tensor):
            raise ValueError(f"{key!r} is not part of an official SlotCon checkpoint: is this file one?")
        converted[re.sub(f"^{prefix}", _OFFICIAL[prefix], name)] = value
    absent = [ours for ours in _OFFICIAL.values() if not any(k.startswith(ours) for k in converted)]
    if absent:
        raise ValueError(
            f"the checkpoint has no {', '.join(n.rstrip('.') for n in absent)}: a full checkpoint holds student, "
            "teacher, predictor and centre; a backbone-only file cannot be continued from"
        )
    return converted

"""The one reader of checkpoint files of unknown origin."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

__all__ = ["read_checkpoint"]


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint without running any code in it.

    Of a pickle, tensors, plain containers and the ``argparse.Namespace`` of the authors' files are all that is
    accepted.

    Args:
        path: a file of safetensors, by its name, or else one written by ``torch.save``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else, such as code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file ({error}): get it again") from None
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

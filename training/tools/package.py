"""Put the export of a run into the wheel: ``python -m training.tools.package RUN slotcon_nano.<tag>``.

The file has the whole teacher in half precision; the backbone is read from it too. Copy the printed SHA-256 into
the rows of ``slotcon_hub/weights/table.py``.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from slotcon_hub.files import sha256
from slotcon_hub.weights import table
from slotcon_hub.weights.store import WEIGHTS

__all__ = ["package"]


def package(run: Path, name: str, folder: Path) -> Path:
    """Write the prototype model that a run exported, floating-point values as float16.

    Args:
        run: folder of a finished run.
        name: ``<architecture>.<tag>`` of the backbone.
        folder: for the file.

    Raises:
        FileNotFoundError: the run has no export.
        ValueError: a value is too large for half precision.
    """
    state = load_file(run / "export" / "prototypes" / WEIGHTS)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if broken := [key for key, value in half.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(f"{broken[0]} is too large for half precision: keep it in float32")
    architecture, tag = name.split(".", 1)
    folder.mkdir(exist_ok=True)
    path = folder / f"{architecture}_proto.{tag}.safetensors"
    save_file({key: value.contiguous() for key, value in half.items()}, path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m training.tools.package RUN NAME, such as slotcon_nano.imagenette_80ep")
    written = package(Path(sys.argv[1]), sys.argv[2], Path(table.__file__).parent / "packaged")
    print(f"{written} ({written.stat().st_size / 1e6:.2f} MB)\nSHA-256 {sha256(written)}")

"""Small runs of pre-training, and what they leave behind."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

TINY = "--batch-size 4 --epochs 2 --warmup-epochs 1 --view-size 32 --num-prototypes 5 --hidden-dim 16 --out-dim 8"

TINY += " --threads 1 --workers 0 --log-every 1 --save-every 1 --backbone slotcon_nano --seed 3"


def write_parquet(folder: Path, images: Path) -> Path:
    image_batch = [{"bytes": path.read_bytes(), "path": None} for path in sorted(images.rglob("*.jpg"))]
    pq.write_table(pa.table({"image": image_batch}), folder / "images.parquet", row_group_size=3)
    return folder / "images.parquet"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)

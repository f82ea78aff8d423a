#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1): load_dataset("parquet", data_dir=...) reads one third of a folder without a word.
#
# A folder holds cat.parquet, dog.parquet and bullet_train.parquet, four rows each: one file a class, as many people
# lay out a small data set. The word "train" between separators in one name makes that file the split "train"; the
# files that name no split are left out. Expected by most: 12 rows, or a message about the files that are not read.
# Folders of images behave alike: a class folder bullet_train becomes a split, whatever stands above it.
#
# Seen: "4 rows of 12 in {'train': 4}", and with the file renamed to bullet.parquet "12 rows of 12 in {'train': 12}".
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HF_HOME="$folder/home" HF_DATASETS_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

datasets.disable_progress_bars()


def rows(third: str) -> dict[str, int]:
    data = Path(third)
    data.mkdir()
    for name in ("cat", "dog", third):
        pq.write_table(pa.table({"label": [name] * 4}), data / f"{name}.parquet")
    found = datasets.load_dataset("parquet", data_dir=str(data.absolute()), cache_dir=f"cache-{third}")
    return {split: len(part) for split, part in found.items()}


for third in ("bullet_train", "bullet"):
    found = rows(third)
    print(f"{third}.parquet: {sum(found.values())} rows of 12 in {found}")
    expected = {"train": 4} if third == "bullet_train" else {"train": 12}
    if found != expected:
        raise SystemExit(f"this has changed: {expected} was seen before")
PY

"""The notebook of the docs runs from top to bottom."""

import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parent.parent / "docs/quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # it is kept without outputs
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = ["".join(out.get("text", "") for out in cell.outputs) for cell in code]
    assert "(16, 256)" in told[2]
    assert re.search(r"^prototype \d+: \d+% of the image", told[3], re.MULTILINE)
    shown = [any("image/png" in out.get("data", {}) for out in cell.outputs) for cell in code]
    assert shown == [False, False, True, True, True, False]
    assert float(re.findall(r"accuracy (\S+)%", told[5])[-1]) > 85
    assert list(tmp_path.iterdir()) == []

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_pre_commit_and_ci_use_the_same_ruff():
    project = (ROOT / "pyproject.toml").read_text()
    (pinned,) = re.findall(r'"ruff==([\d.]+)"', project)
    assert re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()) == [pinned]


def test_the_readme_begins_with_the_demo():
    command = 'pip install -e ".[train]" && accelerate launch training/pretrain.py\n'
    assert command in (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[train,test]" && pytest'
    assert command in (ROOT / "README.md").read_text()
    assert command.replace("install", "install --quiet") in (ROOT / ".ci/run").read_text()


def test_the_readme_is_read_in_two_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_readmes_models_are_made():
    (code,) = re.findall("```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    models: dict[str, Any] = {}
    exec(code, models)
    image = torch.zeros(1, 3, 64, 96)
    assert [map.shape[2] for map in models["backbone"](image)] == [32, 16, 8, 4, 2]
    assert models["grouping"].eval()(image).shape == (1, 64, 4, 6)


@pytest.mark.parametrize(
    "document",
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "model_cards").glob("*.md")],
    ids=lambda path: path.name,
)
def test_documents_point_at_what_exists(document):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", document.read_text()):
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), link
        if heading:
            headings = re.findall("^#+ (.*)", target.read_text(), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in headings], link

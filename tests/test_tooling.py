import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_pre_commit_and_ci_use_the_same_ruff():
    project = (ROOT / "pyproject.toml").read_text()
    (pinned,) = re.findall(r'"ruff==([\d.]+)"', project)
    assert re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()) == [pinned]


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[train,test]" && pytest'
    assert command in (ROOT / "README.md").read_text()
    assert command.replace("install", "install --quiet") in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_documents_point_at_files_that_exist(name):
    links = re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / name).read_text())
    assert all((ROOT / link).exists() for link in links), links

"""One rule for --output: missing folders are made; a file in the way is one sentence, before any work."""

from pathlib import Path

import pytest
from PIL import Image

from slotcon_hub.cli import main

COMMANDS = {
    "export": ["slotcon_nano", "--to", "timm"],
    "segment": ["--model", "slotcon_nano_proto", "images/a.png"],
    "concepts": ["--model", "slotcon_nano_proto", "--images", "images"],
    "publish": ["slotcon_nano", "--dry-run"],
}


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.new("RGB", (64, 64), (200, 50, 30)).save("images/a.png")


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_folders_are_made(command):
    assert main([command, *COMMANDS[command], "--output", "new/folder/out"]) == 0
    assert [path.name for path in Path("new/folder").iterdir()] == ["out"]
    assert any(Path("new/folder/out").iterdir())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("output", ["file/out", "file/deep/out", "file"])
def test_a_file_in_the_way_is_one_sentence_before_the_work(monkeypatch, capsys, command, output):
    monkeypatch.setattr("timm.create_model", None)
    Path("file").write_text("mine")
    assert main([command, *COMMANDS[command], "--output", output]) == 1
    error = capsys.readouterr().err
    assert "file is a file, but must be a folder: choose another --output" in error or (
        command == "export" and "file exists already: add --force" in error
    )
    assert error.count("\n") == 1
    assert Path("file").read_text() == "mine"

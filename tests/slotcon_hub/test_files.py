"""Atomic writes: what was there stays, until all that replaces it is there."""

from pathlib import Path

import pytest

from slotcon_hub.files import atomic_write, remove_leftovers


def make(path: Path, text: str, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    (path / "content" if kind == "folder" else path).write_text(text)


def read(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
def test_files_and_folders_replace_each_other(tmp_path, before, kind):
    path = tmp_path / "made" / "x"
    if before != "nothing":
        path.parent.mkdir()
        make(path, "old", before)
    with atomic_write(path) as new:
        make(new, "new", kind)
        assert path.exists() == (before != "nothing")
    assert read(path) == "new"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_after_an_error_in_the_block_nothing_has_changed(tmp_path, kind):
    make(tmp_path / "x", "old", kind)

    def fail() -> None:
        with atomic_write(tmp_path / "x") as new:
            make(new, "new", kind)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert read(tmp_path / "x") == "old"
    assert [*tmp_path.iterdir()] == [tmp_path / "x"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_old_is_back_if_it_cannot_be_replaced(tmp_path, monkeypatch, kind, error):
    make(tmp_path / "x", "old", kind)
    there = []

    def replace(self: Path, target: Path) -> None:
        there.append(target.exists())
        raise error

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(error), atomic_write(tmp_path / "x") as new:
        make(new, "new", kind)
    assert there == [kind == "file"]  # a file is replaced in one step
    assert read(tmp_path / "x") == "old"


def test_only_what_a_write_left_is_removed(tmp_path):
    for name in (".x-abc/new", ".y-abc/old", ".z-abc", ".own-notes/text", "kept/new"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".rsync-filter").write_text("")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".own-notes", "kept", ".rsync-filter"}

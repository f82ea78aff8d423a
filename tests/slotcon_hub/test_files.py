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


@pytest.mark.parametrize(
    ("before", "kind"),
    [("nothing", "file"), ("nothing", "folder"), ("file", "file"), ("file", "folder"), ("folder", "folder")],
)
def test_what_is_written_replaces_what_was_there(tmp_path, before, kind):
    path = tmp_path / "made" / "x"
    if before != "nothing":
        path.parent.mkdir()
        make(path, "old", before)
    with atomic_write(path) as new:
        make(new, "new", kind)
        assert path.exists() == (before != "nothing")
    assert read(path) == "new"
    assert [*path.parent.iterdir()] == [path]


def test_a_file_does_not_replace_a_folder(tmp_path):
    make(tmp_path / "x", "old", "folder")
    with pytest.raises(IsADirectoryError, match=r"Is a directory: '.*/x'"), atomic_write(tmp_path / "x") as new:
        make(new, "new", "file")
    assert read(tmp_path / "x") == "old"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["content"]


@pytest.mark.parametrize("before", [(), ("content", "other")])
def test_a_folder_stays_and_its_content_is_replaced(tmp_path, monkeypatch, before):
    """A link stays a link, the current folder the current one, and the folder above need not be writable."""
    (tmp_path / "disk").mkdir()
    for name in before:
        (tmp_path / "disk" / name).write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "disk")
    node = (tmp_path / "disk").stat().st_ino
    for number, path in enumerate((tmp_path / "disk", tmp_path / "link", Path())):
        with atomic_write(path) as new:
            make(new, str(number), "folder")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk").stat().st_ino == node
        assert [part.name for part in Path().iterdir()] == ["content"]
        assert read(path) == str(number)


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
@pytest.mark.parametrize("done", [0, 1, 2])
def test_the_old_is_back_if_it_cannot_be_replaced(tmp_path, monkeypatch, done, error):
    make(tmp_path / "x", "old", "folder")
    (tmp_path / "x" / "other").write_text("old")
    rename, moves = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == done + 1:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(error), atomic_write(tmp_path / "x") as new:
        make(new, "new", "folder")
    assert {part.name: part.read_text() for part in (tmp_path / "x").iterdir()} == {
        "content": "old",
        "other": "old",
    }
    assert [*tmp_path.iterdir()] == [tmp_path / "x"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch, error):
    make(tmp_path / "x", "old", "file")

    def fail(self: Path, target: Path) -> None:
        assert target.read_text() == "old"
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(error), atomic_write(tmp_path / "x") as new:
        make(new, "new", "file")
    assert read(tmp_path / "x") == "old"


def test_only_what_a_write_left_is_removed(tmp_path):
    for name in (".x-abc/new", ".y-abc/old", ".z-abc", ".own-notes/text", "kept/new"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".rsync-filter").write_text("")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".own-notes", "kept", ".rsync-filter"}

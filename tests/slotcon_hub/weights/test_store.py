"""The local store: where it is, what it takes, and that it notices what was changed."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from slotcon_hub.weights import store

pytestmark = pytest.mark.usefixtures("home")
NAME = "slotcon_r18.mine"


def content(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / store.WEIGHTS).write_text(text)
        (folder / store.CONFIG).write_text(f"{text} {text}")

    return write


def test_the_home_is_named_or_among_the_users_data(home, monkeypatch):
    assert store.home() == home
    monkeypatch.delenv("SLOTCON_HUB_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert store.home() == Path("/data/slotcon_hub")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert store.home() == Path.home() / ".local/share/slotcon_hub"


def test_what_is_added_is_found_and_replaced(home):
    assert store.find(NAME) is None
    assert store.names() == []
    store.add({NAME: content("a"), "slotcon_r18_proto.mine": content("b")})
    assert store.names() == [NAME, "slotcon_r18_proto.mine"]
    assert store.verify(store.find(NAME)).read_text() == "a"
    with pytest.raises(FileExistsError, match=f"the store has {NAME} already: add --force"):
        store.add({"slotcon_r18.other": content("c"), NAME: content("c")})
    assert store.verify(store.find(NAME)).read_text() == "a"
    assert store.add({NAME: content("c")}, replace=[NAME]) == [home / NAME]
    assert store.verify(store.find(NAME)).read_text() == "c"
    assert {path.name for path in home.iterdir()} == set(store.names())


@pytest.mark.parametrize("name", ["", "..", "slotcon_r18", "slotcon_r18.", "slotcon_r18./x", "../slotcon_r18.x"])
def test_other_names_lead_nowhere(home, name):
    for use in (store.folder, store.find, lambda n: store.add({n: content("a")})):
        with pytest.raises(ValueError, match="is no name of weights"):
            use(name)
    assert not home.exists()


def test_a_failure_leaves_what_was_there(home):
    store.add({NAME: content("a")})

    def fail(folder: Path) -> None:
        content("b")(folder)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.add({NAME: content("b"), "slotcon_r18_proto.mine": fail}, replace=[NAME])
    assert store.names() == [NAME]
    assert store.verify(home / NAME).read_text() == "a"
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("file", [store.WEIGHTS, store.CONFIG])
def test_a_flipped_byte_is_noticed(home, file):
    (folder,) = store.add({NAME: content("a")})
    path = folder / file
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=rf"{file} has changed since it was imported.*import .* again"):
        store.verify(folder)


@pytest.mark.parametrize("file", [store.WEIGHTS, store.CONFIG, store.RECORD])
def test_an_absent_file_is_noticed(home, file):
    (folder,) = store.add({NAME: content("a")})
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"the entry {NAME} of the store is incomplete: remove"):
        store.verify(folder)


@pytest.mark.parametrize("record", ["", "[]", "null", "{}", "\0", json.dumps({store.WEIGHTS: None})])
def test_a_damaged_record_is_noticed(home, record):
    (folder,) = store.add({NAME: content("a")})
    (folder / store.RECORD).write_text(record)
    with pytest.raises(ValueError, match=r"is incomplete|has changed"):
        store.verify(folder)


def test_many_at_once_leave_one_whole_entry(home):
    failures = []

    def add(text: str) -> None:
        try:
            for _ in range(10):
                store.add({NAME: content(text)}, replace=[NAME])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(text,)) for text in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in home.iterdir()] == [NAME]
    assert store.verify(home / NAME).read_text() in "abcdef"

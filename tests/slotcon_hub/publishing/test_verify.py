"""``slotcon-hub verify``: a folder and a repository are what they say, and each kind of damage is named."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import flip
from safetensors.torch import load_file, save_file
from tiny import fill_store

from slotcon_hub.cli import main
from slotcon_hub.files import sha256
from slotcon_hub.publishing import parity
from slotcon_hub.publishing.release import CARD, FILES, build
from slotcon_hub.publishing.verify import verify_folder, verify_repository
from slotcon_hub.weights import store, table

NAME, PROTO, REPO = "slotcon_nano.mine", "slotcon_nano_proto.mine", "org/model"
CHECKS = ["files", "sha256", "config", "card", "parity"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTCON_HUB_HOME", str(folder / "store"))
        fill_store(NAME, PROTO)
        return {name: build(name, folder / name) for name in (NAME, PROTO)}


@pytest.fixture
def folder(built: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(built[NAME], tmp_path / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def record_again(folder: Path) -> None:
    """As somebody would who wants to hide a change."""
    record = json.loads((folder / store.RECORD).read_text())
    (folder / store.RECORD).write_text(json.dumps({file: sha256(folder / file) for file in record}))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / store.CONFIG).read_text()) | changes
    (folder / store.CONFIG).write_text(json.dumps(config))
    record_again(folder)


def edit_card(folder: Path, old: str, new: str) -> None:
    text = (folder / CARD).read_text()
    assert old in text
    (folder / CARD).write_text(text.replace(old, new))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / parity.FILE)
    edit(tensors)
    save_file(tensors, folder / parity.FILE)
    record_again(folder)


@pytest.mark.parametrize("name", [NAME, PROTO])
def test_what_was_built_passes(built, capsys, name):
    assert main(["verify", str(built[name])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[what, "ok"] for what in CHECKS]


def test_an_edited_card_passes(folder):
    edit_card(folder, "# ", "# The ")
    assert all(check.ok for check in verify_folder(folder))


def retrained(folder: Path) -> None:
    state = load_file(folder / store.WEIGHTS)
    state["conv1.0.weight"] *= 1.01
    save_file(state, folder / store.WEIGHTS)
    record_again(folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a flipped byte": (flip, "sha256", r"model\.safetensors is not the published file"),
    "no weights": (lambda f: (f / store.WEIGHTS).unlink(), "files", r"model\.safetensors missing"),
    "no record": (lambda f: (f / store.RECORD).unlink(), "files", r"sha256\.json missing"),
    "a damaged record": (lambda f: (f / store.RECORD).write_text("{"), "sha256", r"sha256\.json is damaged"),
    "a short record": (
        lambda f: (f / store.RECORD).write_text("{}"),
        "sha256",
        r"differ in config\.json, model\.safetensors, test/parity\.safetensors",
    ),
    "a pickle": (lambda f: (f / "test/old.bin").write_bytes(b""), "files", r"test/old\.bin may run code"),
    "our architecture": (
        lambda f: edit_config(f, architecture="slotcon_nano"),
        "config",
        "has architecture='slotcon_nano', and slotcon_nano.mine has 'resnet10t'",
    ),
    "another name": (lambda f: edit_config(f, name="vit_tiny.mine"), "config", "is no name of weights"),
    "arguments": (lambda f: edit_config(f, model_args={"num_classes": 0}), "config", "has model_args="),
    "no preprocessing": (lambda f: edit_config(f, pretrained_cfg={}), "config", "lacks input_size, mean, std"),
    "a damaged configuration": (
        lambda f: (f / store.CONFIG).write_text("[]") and record_again(f),
        "config",
        r"config\.json is damaged",
    ),
    "no front matter": (lambda f: (f / CARD).write_text("# Model\n"), "card", "lacks library_name"),
    "malformed front matter": (lambda f: edit_card(f, "tags:", "tags: ["), "card", "parsing"),
    "another library": (lambda f: edit_card(f, "name: timm", "name: keras"), "card", "must be timm"),
    "an unknown licence": (lambda f: edit_card(f, "tags:", "license: free\ntags:"), "card", "licence 'free'"),
    "no tensors": (lambda f: (f / parity.FILE).unlink(), "files", r"test/parity\.safetensors missing"),
    "other weights": (retrained, "parity", "outputs differ from those in test/parity"),
    "other output": (lambda f: edit_tensors(f, lambda t: t["output"].mul_(1.001)), "parity", "outputs differ"),
    "other map": (lambda f: edit_tensors(f, lambda t: t["map"][0, 0, 0, 0].add_(1)), "parity", "outputs differ"),
    "output that is not a number": (
        lambda f: edit_tensors(f, lambda t: t["output"][0, 0].fill_(torch.nan)),
        "parity",
        " inf ",
    ),
    "output of another shape": (
        lambda f: edit_tensors(f, lambda t: t.update(output=t["output"][:1].clone())),
        "parity",
        r"is \(2, 256\) instead of \(1, 256\)",
    ),
    "tensors without images": (lambda f: edit_tensors(f, lambda t: t.pop("images")), "parity", "instead of"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder, capsys, damage):
    harm, what, message = DAMAGES[damage]
    harm(folder)
    assert main(["verify", str(folder)]) == 1
    out, err = capsys.readouterr()
    failed = {line.split()[0]: line for line in out.splitlines() if line.split()[1] == "failed"}
    assert re.search(message, failed[what]), failed
    assert len(out.splitlines()) == len(CHECKS)
    dependent = {} if what in ("card", "parity") else {"sha256", "config", "parity"}
    assert failed.keys() <= {what, *dependent}
    assert ("not recomputed" in failed.get("parity", "")) == bool(dependent)
    assert err.splitlines()[-1].startswith(f"slotcon-hub: {folder} differs from what was published: ")


def test_the_table_is_asked(built, monkeypatch):
    digest = sha256(built[NAME] / store.WEIGHTS)
    for known, ok in ((digest, True), ("0" * 64, False), (None, True)):
        row = replace(table.ROWS[0], architecture="slotcon_nano", tag="mine", sha256=known)
        monkeypatch.setattr(table, "ROWS", (row,))
        (check,) = [check for check in verify_folder(built[NAME]) if check.what == "sha256"]
        assert check.ok == ok
        assert ok or "not the published weights slotcon_nano.mine" in check.found


def test_what_is_neither_folder_nor_repository(capsys, tmp_path):
    for place in (str(tmp_path / "none"), "model", "a/b/c", "org/a b"):
        assert main(["verify", place]) == 1
        assert f"{place!r} is no repository of the Hub: use <organisation>/<name>" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        verify_folder(tmp_path / "none")


def test_a_folder_of_something_else_is_one_sentence(tmp_path, built, capsys):
    shutil.copytree(built[NAME], tmp_path / "export", ignore=shutil.ignore_patterns(store.RECORD, "test"))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "export", tmp_path / "empty", tmp_path):
        assert main(["verify", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{folder} is no published model: give a folder that `slotcon-hub publish" in err
        assert err.count("\n") == 1


def test_a_repository_passes_at_any_revision(hub, built, capsys):
    repo = hub.add_repo(REPO, contents(built[NAME]))
    repo.tags["v1"] = repo.at().oid
    repo.commit({}, [store.WEIGHTS])
    assert main(["verify", f"{REPO}@v1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)
    assert main(["verify", REPO]) == 1
    assert "model.safetensors missing" in capsys.readouterr().out


def test_only_what_is_ours_is_downloaded(hub, built):
    hub.add_repo(REPO, contents(built[NAME]) | {"pytorch_model.bin": b"code", "notes.txt": b"hello"})
    checks = {check.what: check for check in verify_repository(REPO)}
    assert "pytorch_model.bin may run code" in checks["files"].found
    fetched = {request.path.split("/")[-1] for request in hub.requests if "/resolve/" in request.path}
    assert store.WEIGHTS in fetched <= {name.split("/")[-1] for name in FILES}


def test_a_damaged_download_is_noticed_and_can_be_had_again(hub, built, capsys):
    hub.add_repo(REPO, contents(built[NAME]))
    hub.corrupted.add((REPO, store.WEIGHTS))
    for _ in range(2):
        assert main(["verify", REPO]) == 1
        out = capsys.readouterr().out
    (path,) = re.findall(r"sha256 +failed +model.safetensors is not .* remove (\S+) and", out)
    hub.corrupted.clear()
    Path(path).unlink()
    assert main(["verify", REPO]) == 0


def test_what_the_hub_tells_counts(hub, built, tmp_path):
    """A cache in which both the weights and their record were exchanged."""
    hub.add_repo(REPO, contents(built[NAME]))
    assert all(check.ok for check in verify_repository(REPO))
    (snapshot,) = (tmp_path / "home/hub").glob("models--org--model/snapshots/*")
    retrained(snapshot)
    (check,) = [check for check in verify_repository(REPO) if check.what == "sha256"]
    assert "model.safetensors is not the published file" in check.found


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("absent", "there is no such repository, or it is private"),
        ("private", "there is no such repository, or it is private"),
        ("gated", "access is granted on its page"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("unplugged", r"the connection to the Hub broke \(ConnectError\)"),
        ("dropped", "the connection to the Hub broke"),
        ("failing", "the Hub fails, with 503: try again later"),
        ("failing download", "the Hub fails, with 503: try again later"),
        ("busy", "try again later"),
        ("another revision", "it has no such revision"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub, built, monkeypatch, capsys, state, reason):
    if state != "absent":
        kind = {state: True} if state in ("private", "gated") else {}
        hub.add_repo(REPO, contents(built[NAME]), **kind)
    if state == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if state == "unplugged":
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's tries
    if state == "dropped":
        hub.fail("GET /api/models", status=None)
    if state.startswith("failing"):
        hub.fail("GET /cdn/" if "download" in state else "GET /api/models", times=9)
    if state == "busy":
        hub.fail("GET /api/models", times=9, status=429)
    assert main(["verify", REPO + ("@v9" if state == "another revision" else "")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(reason, err)
    assert err.splitlines()[-1].startswith(f"slotcon-hub: {REPO} was not verified: ")

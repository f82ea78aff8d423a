"""The stand-in Hub against the real client, so that what we test against it holds on the Hub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
from hub_repositories import Blob, Repository
from hub_server import CLIENT_WARNING, HubServer
from huggingface_hub import HfApi, close_session, create_repo, errors, hf_hub_download, snapshot_download
from timm.models import save_for_hf

MODEL = "org/tiny"
WEIGHTS = bytes(range(256)) * 40
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"architecture": "resnet10t"}', "maps/a b.txt": b"a"}
# The client hands its PUT body to httpx2 under a name that httpx2 has deprecated.
pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)
CARD = b"---\nlicense: apache-2.0\nlibrary_name: timm\ntags: [slotcon]\n---\n# Tiny\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tokens={"hf_test"}, strangers={"hf_other"}) as hub:
        hub.adopt(monkeypatch, tmp_path / "home")
        yield hub
        close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {**FILES, "README.md": CARD}.items():
        path = tmp_path / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "export"


PUBLISH = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

api, repo, folder = HfApi(), "org/tiny", sys.argv[1]
assert api.whoami()["name"] == "tester"
url = api.create_repo(repo, private=True)
assert url.repo_id == api.create_repo(repo, exist_ok=True).repo_id == repo
try:
    api.create_repo(repo)
except HfHubHTTPError as error:
    assert error.response.status_code == 409
first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="weights")
api.create_tag(repo, tag="v1", revision=first.oid)
api.create_tag(repo, tag="v1", exist_ok=True)
again = api.upload_folder(repo_id=repo, folder_path=folder)
assert again.oid == first.oid, "nothing has changed"
second = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo, parent_commit=first.oid)
third = api.delete_file("maps/a b.txt", repo)
pull = api.upload_file(path_or_fileobj=b"[]", path_in_repo="config.json", repo_id=repo, create_pr=True)
assert pull.pr_revision == "refs/pr/1"
names = {"tag": "v1", "first": first.oid, "main": "main", "pull": pull.pr_revision}
info = api.model_info(repo, revision="v1", files_metadata=True)
refs = api.list_repo_refs(repo, include_pull_requests=True)
checked = api.verify_repo_checksums(repo, revision="v1", local_dir=folder)
def read(name, revision):
    return Path(hf_hub_download(repo, name, revision=revision)).read_bytes()

print(json.dumps({
    "oids": [first.oid, second.oid, third.oid, pull.oid],
    "configs": {name: read("config.json", revision).decode() for name, revision in names.items()},
    "weights": read("model.safetensors", "v1").hex(),
    "info": [info.sha, info.private, info.library_name, info.tags, info.card_data.license],
    "siblings": {s.rfilename: [s.size, s.lfs and s.lfs.sha256] for s in info.siblings},
    "files": api.list_repo_files(repo, revision="v1"),
    "main": api.list_repo_files(repo),
    "refs": {r.ref: r.target_commit for r in [*refs.branches, *refs.tags, *refs.pull_requests]},
    "paths": [p.path for p in api.get_paths_info(repo, ["maps", "model.safetensors"], revision="v1")],
    "top": [p.path for p in api.list_repo_tree(repo, revision="v1")],
    "checked": [checked.checked_count, checked.mismatches, checked.missing_paths],
}))
"""


def test_a_folder_is_published_and_read_back(tmp_path: Path, folder: Path) -> None:
    with HubServer(tokens={"hf_test"}) as hub:
        environment = hub.environment(tmp_path / "home", token="hf_test")
        command = [sys.executable, "-W", "error", "-W", CLIENT_WARNING, "-c", PUBLISH, str(folder)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    first, second, third, pull = told["oids"]

    original = FILES["config.json"].decode()
    assert told["configs"] == {"tag": original, "first": original, "main": "{}", "pull": "[]"}
    assert bytes.fromhex(told["weights"]) == WEIGHTS
    assert told["info"] == [first, True, "timm", ["slotcon"], "apache-2.0"]
    assert told["siblings"]["model.safetensors"] == [len(WEIGHTS), sha256(WEIGHTS).hexdigest()]
    assert told["siblings"]["README.md"] == [len(CARD), None]
    assert set(told["files"]) == {*FILES, "README.md", ".gitattributes"}
    assert set(told["main"]) == {*FILES, "README.md", ".gitattributes"} - {"maps/a b.txt"}
    assert told["refs"] == {"refs/heads/main": third, "refs/tags/v1": first, "refs/pr/1": pull}
    assert told["paths"] == ["maps", "model.safetensors"]
    assert told["top"] == [".gitattributes", "README.md", "config.json", "maps", "model.safetensors"]
    assert told["checked"] == [5 - 1, [], [".gitattributes"]]

    assert hub.repos[MODEL].commits[second].parent is hub.repos[MODEL].commits[first]
    assert [r.method for r in hub.requests if r.path.startswith("/lfs/")] == ["PUT"]
    assert any(r.token == "hf_test" for r in hub.requests)
    assert "hf_test" not in run.stdout + run.stderr
    assert not any(r.token for r in hub.requests if r.path.startswith("/cdn/"))


def test_the_same_history_has_the_same_commit_ids() -> None:
    def history() -> list[str]:
        repo = Repository(MODEL)
        repo.commit({"a": Blob(b"1", lfs=False)}, title="one")
        repo.commit({"b": Blob(b"2", lfs=True)}, ["a"], title="two")
        return list(repo.commits)

    assert history() == history()
    assert len(set(history())) == 3


@pytest.mark.parametrize(
    ("token", "repo", "revision", "file", "error", "status"),
    [
        (False, "org/none", "main", "config.json", errors.RepositoryNotFoundError, 401),
        ("hf_test", "org/none", "main", "config.json", errors.RepositoryNotFoundError, 404),
        (False, "org/private", "main", "config.json", errors.RepositoryNotFoundError, 401),
        ("hf_other", "org/private", "main", "config.json", errors.RepositoryNotFoundError, 404),
        ("hf_wrong", "org/open", "main", "config.json", errors.HfHubHTTPError, 401),
        (False, "org/gated", "main", "config.json", errors.GatedRepoError, 401),
        ("hf_other", "org/gated", "main", "config.json", errors.GatedRepoError, 403),
        (False, "org/open", "v9", "config.json", errors.RevisionNotFoundError, 404),
        (False, "org/open", "main", "none.json", errors.RemoteEntryNotFoundError, 404),
    ],
)
def test_refusals_raise_the_clients_own_errors(
    hub: HubServer, token: str | bool, repo: str, revision: str, file: str, error: type[Exception], status: int
) -> None:
    hub.add_repo("org/open", FILES)
    hub.add_repo("org/private", FILES, private=True)
    hub.add_repo("org/gated", FILES, gated=True)
    with pytest.raises(errors.HfHubHTTPError) as refused:
        hf_hub_download(repo, file, revision=revision, token=token)
    assert type(refused.value) is error
    assert refused.value.response.status_code == status
    assert Path(hf_hub_download("org/gated", "config.json", token="hf_test")).read_bytes() == FILES["config.json"]


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_other", 403)])
def test_writing_needs_rights(hub: HubServer, token: str | bool, status: int) -> None:
    hub.add_repo(MODEL, FILES)
    api = HfApi(token=token)
    for attempt in (
        lambda: create_repo("org/new", token=token),
        lambda: api.create_tag(MODEL, tag="v1"),
        lambda: api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=MODEL),
    ):
        with pytest.raises(errors.HfHubHTTPError) as refused:
            attempt()
        assert refused.value.response.status_code == status
    assert len(hub.repos[MODEL].commits) == 2
    assert not hub.repos[MODEL].tags


def test_whoever_is_known_may_propose_a_change(hub: HubServer) -> None:
    repo = hub.add_repo(MODEL, FILES)
    before = repo.at()
    proposal = HfApi(token="hf_other").upload_file(
        path_or_fileobj=b"new", path_in_repo="model.safetensors", repo_id=MODEL, create_pr=True
    )
    assert proposal.pr_revision == "refs/pr/1"
    assert repo.at("refs/pr/1").file("model.safetensors").content == b"new"
    assert repo.at() is before


def test_a_hub_that_is_gone_answers_no_connection_that_was_kept(hub: HubServer) -> None:
    with HubServer() as gone:
        gone.add_repo(MODEL, FILES)
        HfApi(gone.url).model_info(MODEL)
    with pytest.raises(Exception, match=r"refused|disconnected|reset"):
        HfApi(gone.url).model_info(MODEL)


def test_a_commit_on_an_outdated_parent_is_refused(hub: HubServer) -> None:
    repo = hub.add_repo(MODEL, FILES)
    with pytest.raises(errors.HfHubHTTPError) as refused:
        HfApi(token="hf_test").delete_file("config.json", MODEL, parent_commit=next(iter(repo.commits)))
    assert refused.value.response.status_code == 412


def test_a_malformed_card_is_refused(hub: HubServer) -> None:
    hub.add_repo(MODEL)
    with pytest.raises(ValueError, match="Invalid metadata"):
        HfApi(token="hf_test").upload_file(
            path_or_fileobj=b"---\ntags: [\n---\n", path_in_repo="README.md", repo_id=MODEL
        )


def test_an_unavailable_hub_is_asked_again_for_metadata_and_uploads_but_not_for_content(hub: HubServer) -> None:
    hub.add_repo(MODEL, FILES)
    hub.fail("HEAD .*/resolve/")
    assert Path(hf_hub_download(MODEL, "config.json")).exists()

    hub.fail("GET /cdn/")
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        hf_hub_download(MODEL, "model.safetensors")
    assert Path(hf_hub_download(MODEL, "model.safetensors")).read_bytes() == WEIGHTS

    hub.fail("PUT /lfs/")
    api = HfApi(token="hf_test")
    api.upload_file(path_or_fileobj=b"new", path_in_repo="model.safetensors", repo_id=MODEL)
    assert hub.repos[MODEL].at().file("model.safetensors").content == b"new"
    assert [r.status for r in hub.requests if r.method == "PUT"] == [503, 200]

    hub.fail("/api/models/org/tiny$", status=500)
    with pytest.raises(errors.HfHubHTTPError, match="500"):
        api.model_info(MODEL)


def test_a_download_goes_on_where_its_connection_was_dropped(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # it keeps whole chunks only
    hub.add_repo(MODEL, FILES)
    hub.drop("model.safetensors")
    assert Path(hf_hub_download(MODEL, "model.safetensors")).read_bytes() == WEIGHTS
    fetched = [(r.status, r.headers.get("range")) for r in hub.requests if r.method == "GET" and r.status < 300]
    assert fetched == [(200, None), (206, f"bytes={len(WEIGHTS) // 2}-")]


def test_a_flipped_byte_is_only_seen_by_its_checksum(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(MODEL, FILES)
    hub.corrupt(MODEL, "model.safetensors")
    local = snapshot_download(MODEL, local_dir=tmp_path / "local")
    arrived = Path(local, "model.safetensors").read_bytes()
    assert len(arrived) == len(WEIGHTS)
    assert sum(a != b for a, b in zip(arrived, WEIGHTS, strict=True)) == 1
    (mismatch,) = HfApi().verify_repo_checksums(MODEL, local_dir=local).mismatches
    assert mismatch["path"] == "model.safetensors"
    assert mismatch["expected"] == sha256(WEIGHTS).hexdigest()
    assert mismatch["actual"] == sha256(arrived).hexdigest()


def test_an_error_in_the_server_itself_is_not_mistaken_for_an_answer(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(UnicodeDecodeError), HubServer() as broken:  # noqa: PT012
        broken.add_repo(MODEL, {"README.md": b"\xff"})
        with pytest.raises(errors.HfHubHTTPError, match="500"):
            HfApi(broken.url).model_info(MODEL)


def test_timm_loads_a_model_from_it(hub: HubServer, tmp_path: Path) -> None:
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16), "stem_width": 8}
    model = timm.create_model("resnet10t", num_classes=3, **small)
    save_for_hf(model, tmp_path / "model", model_args=small, safe_serialization=True)
    hub.add_repo(MODEL, {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}, private=True)

    with pytest.raises(errors.RepositoryNotFoundError):
        timm.create_model(f"hf-hub:{MODEL}", pretrained=True)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text("hf_test")
    loaded = timm.create_model(f"hf-hub:{MODEL}", pretrained=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)

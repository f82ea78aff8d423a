"""``slotcon-hub publish`` against a Hub on loopback: what arrives, what is refused, what an interruption leaves."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_server import CLIENT_WARNING, STRANGER, TOKEN, HubServer, Repository
from PIL import Image
from tiny import fill_store

from slotcon_hub import SlotCon, SlotConConfig, __version__
from slotcon_hub.cli import main
from slotcon_hub.export.teacher import export
from slotcon_hub.files import sha256
from slotcon_hub.publishing import parity
from slotcon_hub.publishing.release import CARD, FILES, PREVIEW, build, snippet
from slotcon_hub.publishing.upload import changes
from slotcon_hub.publishing.verify import verify_folder
from slotcon_hub.weights import store
from slotcon_hub.weights.hub import failure_reason

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)
NAME, PROTO, R50 = "slotcon_nano.mine", "slotcon_nano_proto.mine", "slotcon_r50.coco_800ep"
REPO = f"slotcon/{NAME}"
VERSION = f"v{__version__}"
PUBLISHED = {*FILES, ".gitattributes"} - {PREVIEW}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTCON_HUB_HOME", str(tmp_path_factory.mktemp("filled")))
        fill_store(NAME, PROTO)
        return store.home()


@pytest.fixture
def hub(hub: HubServer, filled: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub, a store with two names, and a token that may write."""
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(filled))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's tries
    return hub


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a `publish` that fails."""
    capsys.readouterr()
    assert main(["publish", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert TOKEN not in err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("slotcon-hub: ")
    return sentence


def titles(repo: Repository) -> list[str]:
    return [commit.title for commit in repo.commits.values()]


def test_it_arrives_in_one_commit_with_a_tag(hub, tmp_path, capsys):
    assert main(["publish", NAME]) == 0
    repo = hub.repos[REPO]
    assert titles(repo) == ["initial commit", f"Publish {NAME} with slotcon_hub {__version__}"]
    assert not repo.private
    head = repo.at()
    assert repo.tags == {VERSION: head.oid}
    assert head.files.keys() == PUBLISHED
    folder = build(NAME, tmp_path / "local")
    assert all(content == (folder / file).read_bytes() for file, content in head.files.items() if file in FILES)
    out = capsys.readouterr().out
    for told in (f"{hub.url}/{REPO}", VERSION, head.oid, sha256(folder / store.WEIGHTS), snippet(NAME, REPO)):
        assert told in out
    assert main(["verify", f"{REPO}@{VERSION}"]) == 0


def test_the_card_and_the_snippet_name_the_repository(hub, capsys):
    assert main(["publish", PROTO, "--repo-id", "people/grouping"]) == 0
    card = hub.repos["people/grouping"].at().files[CARD].decode()
    assert "people/grouping" in card
    assert f"slotcon/{PROTO}" not in card
    code = capsys.readouterr().out.partition("This works now:\n")[2]
    assert code.splitlines()[1:] == [
        "import slotcon_hub",
        "import timm",
        "",
        'model = timm.create_model("hf-hub:people/grouping", pretrained=True)',
    ]
    names: dict[str, object] = {}
    exec(code, names)
    assert names["model"].num_classes == 64


def test_a_tag_never_moves_and_nothing_new_is_no_commit(hub, monkeypatch, tmp_path):
    for _ in range(2):
        assert main(["publish", NAME]) == 0
    repo = hub.repos[REPO]
    first = repo.at().oid
    assert len(repo.commits) == 2
    assert repo.tags == {VERSION: first}
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    fill_store(NAME, seed=1)
    for _ in range(2):
        assert main(["publish", NAME]) == 0
    assert len(repo.commits) == 3
    assert repo.tags == {VERSION: first, f"{VERSION}-1": repo.at().oid}


def test_a_dry_run_needs_nobody(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["publish", NAME, "--dry-run"]) == 0
    assert not hub.requests
    out = capsys.readouterr().out
    folder = Path(re.findall(r"local-dir:([^\"]+)", out)[0])
    assert out.startswith(f"{folder}: nothing was uploaded.")
    assert out.count(" ok ") == len(verify_folder(folder)) == 5
    assert main(["publish", "slotcon_r34.x", "--dry-run"]) == 1
    assert list(tmp_path.glob("slotcon-hub-*")) == [folder]


def test_a_dry_run_goes_where_it_is_told(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "empty"))
    folder = tmp_path / "new" / "folder"
    assert main(["publish", "slotcon_nano", "--dry-run", "--output", str(folder)]) == 0
    assert json.loads((folder / store.CONFIG).read_text())["name"] == "slotcon_nano.imagenette_180ep"
    assert main(["verify", str(folder)]) == 0
    assert "folder is not empty" in refused(capsys, "slotcon_nano", "--dry-run", "--output", str(folder))
    (tmp_path / "file").write_text("")
    refused(capsys, "slotcon_nano", "--dry-run", "--output", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        main(["publish", "slotcon_nano", "--output", str(folder)])
    assert "add --dry-run, or leave --output out" in capsys.readouterr().err


@pytest.mark.parametrize("name", [NAME, PROTO])
def test_a_run_is_published_by_the_name_of_the_repository(hub, monkeypatch, tmp_path, capsys, name):
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "empty"))
    slotcon = SlotCon("slotcon_nano", SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7))
    export(slotcon, tmp_path / "run" / "export", input_size=96, trained="In a test.")
    assert "has no name: give one, such as --repo-id slotcon/" in refused(capsys, str(tmp_path / "run"))
    assert main(["publish", str(tmp_path / "run"), "--repo-id", f"people/{name}"]) == 0
    assert main(["verify", f"people/{name}"]) == 0
    net = timm.create_model(f"hf-hub:people/{name}", pretrained=True)
    expected = slotcon.teacher if name == PROTO else slotcon.teacher.backbone
    assert all(torch.equal(net.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert net.pretrained_cfg["input_size"] == [3, 96, 96] or net.pretrained_cfg["input_size"] == (3, 96, 96)
    alone = str(tmp_path / "run" / "export" / "backbone")
    assert "publish it as slotcon_nano.mine" in refused(capsys, alone, "--repo-id", f"people/{PROTO}")
    assert "no architecture 'model'" in refused(capsys, alone, "--repo-id", "people/model.x")


def test_a_private_repository(hub, capsys):
    assert main(["publish", NAME, "--private"]) == 0
    assert hub.repos[REPO].private
    assert main(["publish", NAME]) == 0
    assert hub.repos[REPO].private
    hub.add_repo("org/open")
    assert "exists and is public" in refused(capsys, NAME, "--private", "--repo-id", "org/open")
    assert len(hub.repos["org/open"].commits) == 1


def test_a_pull_request_has_no_tag(hub, monkeypatch, capsys):
    repo = hub.add_repo(REPO)
    before = repo.at()
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert main(["publish", NAME, "--create-pr"]) == 0
    assert repo.at() is before
    assert not repo.tags
    assert repo.at("refs/pr/1").files.keys() == PUBLISHED
    out = capsys.readouterr().out
    assert f"{hub.url}/{REPO}/discussions/1" in out
    assert f'"hf-hub:{REPO}@refs/pr/1"' in out
    assert 'revision="refs/pr/1"' in out
    assert main(["verify", f"{REPO}@refs/pr/1"]) == 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["publish", NAME]) == 0
    assert main(["publish", NAME, "--create-pr"]) == 0  # there is nothing to propose
    assert list(repo.heads) == ["main", "refs/pr/1"]


def test_a_preview_comes_and_goes(hub, tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "scene.jpg")
    assert main(["publish", NAME, "--preview", str(tmp_path / "scene.jpg")]) == 0
    repo = hub.repos[REPO]
    assert repo.at().files.keys() == PUBLISHED | {PREVIEW}
    assert main(["verify", REPO]) == 0
    repo.commit({"LICENSE": repo.at().files[CARD]})
    assert main(["publish", NAME]) == 0
    assert repo.at().files.keys() == PUBLISHED | {"LICENSE"}  # what others have added stays


@pytest.mark.parametrize(
    "files",
    [
        {"pytorch_model.bin": b"other", "config.json": b'{"architecture": "vit"}'},
        {"config.json": b"no json", "sha256.json": b"{}"},
        {"config.json": json.dumps({"name": PROTO}).encode(), "sha256.json": b"{}"},
        {"config.json": json.dumps([NAME]).encode(), "sha256.json": b"{}"},
        {"notes.txt": b"mine"},
    ],
    ids=["another model", "a damaged one", "another name", "a list", "notes"],
)
def test_something_else_stays_without_force(hub, capsys, files):
    repo = hub.add_repo(REPO, files)
    before = repo.at()
    assert f"{REPO} has other content than {NAME} (" in refused(capsys, NAME)
    assert repo.at() is before


def test_force_replaces_all(hub):
    repo = hub.add_repo(REPO, {"pytorch_model.bin": b"other", "old/notes.txt": b"mine"})
    assert main(["publish", NAME, "--force"]) == 0
    assert repo.at().files.keys() == PUBLISHED
    assert len(repo.commits) == 3


def test_a_card_alone_is_replaced(hub):
    repo = hub.add_repo(REPO, {CARD: b"---\nlicense: mit\n---\nSoon.\n"})
    assert main(["publish", NAME]) == 0
    assert repo.at().files.keys() == PUBLISHED


FAILING, BROKEN = r"the Hub fails, with 503: try again later", r"the connection to the Hub broke \(\w+\): run it"


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("", "publishing needs a token that may write: log in with `hf auth login`, or set HF_TOKEN"),
        (
            "hf_wrong",
            "the Hub does not accept the token: log in again with `hf auth login`, or set another HF_TOKEN",
        ),
        (STRANGER, "the token does not allow this: use one that may write there"),
        ("offline", "HF_HUB_OFFLINE is set: unset it"),
        ("unplugged", BROKEN),
    ],
)
def test_who_may_not_or_cannot_reads_one_sentence(hub, monkeypatch, capsys, state, sentence):
    if state == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif state == "unplugged":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setenv("HF_TOKEN", state)
    assert re.search(sentence, refused(capsys, NAME))
    assert not hub.repos


@pytest.mark.parametrize(
    ("place", "status", "sentence"),
    [
        ("PUT /lfs/", 503, FAILING),
        ("/commit/", 503, FAILING),
        ("/commit/", None, BROKEN),
        ("GET /cdn/", 503, FAILING),
        ("GET /cdn/", None, BROKEN),
        ("GET /cdn/", "corrupt", r"model\.safetensors differs after a download from slotcon/slotcon_nano\.mine"),
        ("/tag/", 503, FAILING),
    ],
)
def test_after_an_interruption_the_same_command_goes_on(hub, capsys, place, status, sentence):
    if status == "corrupt":
        hub.corrupted.add((REPO, store.WEIGHTS))
    else:
        hub.fail(place, times=99, status=status)
    assert re.search(sentence, refused(capsys, NAME))
    repo = hub.repos[REPO]
    assert not repo.tags
    hub.faults.clear()
    hub.corrupted.clear()
    assert main(["publish", NAME]) == 0
    assert len(repo.commits) == 2
    assert repo.tags == {VERSION: repo.at().oid}


def test_what_came_in_between_is_not_overwritten(hub, monkeypatch, capsys):
    repo = hub.add_repo(REPO)
    monkeypatch.setattr(
        "slotcon_hub.publishing.upload.changes",
        lambda *args: (repo.commit({"notes.txt": b"mine"}), changes(*args))[1],
    )
    assert "somebody else changed it meanwhile: run the command again" in refused(capsys, NAME)
    assert repo.at().files.keys() == {".gitattributes", "notes.txt"}


def test_a_token_is_cut_out_of_what_the_client_says(hub):
    assert failure_reason(OSError(f"cannot send {TOKEN}, sorry.\nMore")) == "cannot send ..., sorry"


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "org/", "org/a b", "org/a..b"])
def test_what_is_no_repository(hub, capsys, repo_id):
    assert "is no repository of the Hub: use <organisation>/<name>" in refused(capsys, NAME, "--repo-id", repo_id)
    refused(capsys, NAME, "--repo-id", repo_id, "--dry-run")
    assert not hub.requests


def test_a_name_that_the_store_lacks(hub, capsys):
    assert "run `slotcon-hub import CHECKPOINT slotcon_r34.x`" in refused(capsys, "slotcon_r34.x")
    assert not hub.repos


def test_the_token_is_nowhere(hub, tmp_path, capsys):
    assert main(["publish", NAME]) == 0
    hub.corrupted.add((REPO, store.WEIGHTS))
    assert main(["publish", NAME]) == 1
    out, err = capsys.readouterr()
    assert any(request.token == TOKEN for request in hub.requests)
    assert not any(request.token for request in hub.requests if request.path.startswith("/cdn/"))
    assert TOKEN not in out + err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in written]
    contents += [content for commit in hub.repos[REPO].commits.values() for content in commit.files.values()]
    assert not any(TOKEN.encode() in content for content in contents)


LOADS = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file

for code, tensors in json.loads(sys.argv[1]):
    names = {}
    exec(code, names)
    expected = load_file(tensors)
    x = expected["images"]
    with torch.no_grad():
        found = names["model"].eval()(x), names["auto_model"].eval()(x), names["backbone"].eval()(x)
    torch.testing.assert_close(found[0], expected["output"])
    torch.testing.assert_close(found[1].pooler_output, expected["output"])
    torch.testing.assert_close(found[1].last_hidden_state, expected["map"])
    torch.testing.assert_close(found[2].feature_maps[-1], expected["map"])
assert "slotcon_hub" not in sys.modules
print("both")
"""


def test_the_snippet_works_in_timm_alone_and_in_transformers(hub, filled, monkeypatch, tmp_path, capsys):
    """And the name works, where the store is empty: the one test with ResNet-50."""
    nano = build(NAME, tmp_path / "nano")
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    net = fill_store(R50)[R50]
    assert main(["publish", R50]) == 0
    printed = capsys.readouterr().out.partition("This works now:\n")[2]
    (tmp_path / parity.FILE).parent.mkdir()
    (tmp_path / parity.FILE).write_bytes(hub.repos[f"slotcon/{R50}"].at().files[parity.FILE])

    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr("slotcon_hub.weights.table._CHOSEN", "slotcon")
    loaded = timm.create_model(R50, pretrained=True).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())

    tasks = [(printed, str(tmp_path / parity.FILE)), (snippet(NAME, nano), str(nano / parity.FILE))]
    done = subprocess.run(
        [sys.executable, "-c", LOADS, json.dumps(tasks)],
        env=hub.environment(tmp_path / "home") | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["both"], done.stderr

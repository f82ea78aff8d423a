"""``slotcon-hub publish NAME --space`` against a Hub on loopback."""

import ast
import io
import re
import shutil
from pathlib import Path

import pytest
from hub_server import CLIENT_WARNING, TOKEN
from huggingface_hub import SpaceCard, snapshot_download
from PIL import Image
from prototype_models import painted
from tiny import fill_store

from slotcon_hub.cli import main
from slotcon_hub.explore.collection import EXAMPLES

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)
PROTO, REPO = "slotcon_nano_proto.imagenette_20ep", "people/grouping"
SPACE = f"spaces/{REPO}"
FROM = "git+https://example.org/slotcon_hub@v1"
AS_SPACE = ("--space", "--install-from", FROM)
FILES = {"app.py", "requirements.txt", "README.md", *(f"examples/{path.name}" for path in EXAMPLES.iterdir())}


@pytest.fixture
def hub(hub, monkeypatch, home):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return hub


def publish(*options, name=PROTO):
    return main(["publish", name, "--repo-id", REPO, *options])


def test_the_space_of_a_published_model(hub, capsys):
    assert publish() == 0
    capsys.readouterr()
    assert publish(*AS_SPACE) == 0
    assert capsys.readouterr().out == f"{hub.url}/{SPACE}\n"
    space = hub.repos[SPACE]
    files = space.at().files
    assert files.keys() - {".gitattributes"} == FILES
    assert all(files[f"examples/{path.name}"] == path.read_bytes() for path in EXAMPLES.iterdir())
    card = SpaceCard(files["README.md"].decode()).data.to_dict()
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert card["sdk_version"] == re.search(r'"gradio>=(\S+)"', project)[1] + ".0"
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert (card["models"], card["license"]) == ([REPO], "apache-2.0")
    assert files["requirements.txt"].decode() == f"slotcon-hub[explore] @ {FROM}\n"
    ast.parse(files["app.py"])
    assert len(space.commits) == 2
    assert publish(*AS_SPACE) == 0
    assert len(space.commits) == 2


def test_it_is_built_without_the_hub(tmp_path, monkeypatch, home, capsys):
    folder = tmp_path / "folder"
    for _ in range(2):
        code = publish(*AS_SPACE, "--dry-run", "--output", str(folder))
    assert code == 1
    assert "is not empty" in capsys.readouterr().err
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES


def refused(capsys, *options, **named):
    capsys.readouterr()
    assert publish(*AS_SPACE, *options, **named) == 1
    return capsys.readouterr().err


def test_what_is_refused(hub, monkeypatch, capsys):
    sentence = f"{REPO} is not on the Hub, or is private: first run `slotcon-hub publish {PROTO}`"
    assert sentence in refused(capsys)
    assert "slotcon_nano.mine is a backbone, which has no groups" in refused(capsys, name="slotcon_nano.mine")
    assert SPACE not in hub.repos
    assert publish() == 0
    with pytest.raises(SystemExit, match="2"):
        publish(*AS_SPACE, "--create-pr")
    for options in (("--space",), ("--install-from", FROM)):
        with pytest.raises(SystemExit, match="2"):
            publish(*options)
        assert "--space needs --install-from, the URL of this package for the Space" in capsys.readouterr().err
    assert "'slotcon-hub' is no URL that pip installs from" in refused(capsys, "--install-from", "slotcon-hub")
    other = hub.add_repo(SPACE, {"app.py": b"print()", "README.md": b"mine"})
    assert f"the Space {REPO} has other content: replace all of it with --force" in refused(capsys)
    other.commit({"requirements.txt": b"torch\n"})
    assert f"the Space {REPO} has other content: replace all of it with --force" in refused(capsys)
    assert f"the Space {REPO} exists and is public" in refused(capsys, "--private")
    assert other.at().files["app.py"] == b"print()"
    assert publish(*AS_SPACE, "--force") == 0
    assert b"load_models" in other.at().files["app.py"]
    hub.corrupted.add((SPACE, "app.py"))
    assert f"app.py differs after a download from {REPO}" in refused(capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert "publishing needs a token" in refused(capsys)


@pytest.mark.browser
def test_it_runs_from_the_published_model_alone(hub, tmp_path, monkeypatch):
    from browser import WAIT, chromium, expect, served

    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "filled"))
    name = "slotcon_nano_proto.mine"
    fill_store(name)
    assert publish(name=name) == 0
    assert publish(*AS_SPACE, name=name) == 0
    shutil.rmtree(tmp_path / "filled")
    folder = snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space")
    asked = len(hub.requests)
    environment = hub.environment(tmp_path / "another") | {"SLOTCON_HUB_CACHE": str(tmp_path / "cache")}
    app = str(Path(folder) / "app.py")
    with chromium() as browser, served([app], tmp_path / "log", HF_HUB_OFFLINE="0", **environment) as url:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        buffer = io.BytesIO()
        Image.fromarray(painted(2)).save(buffer, "PNG")
        page.locator("#file input").set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
        )
        expect(page.locator(".segments")).to_contain_text("%", timeout=WAIT)
        expect(page.locator("h3")).to_have_text(REPO)
    assert any(request.path.startswith(f"/{REPO}/resolve/") for request in hub.requests[asked:])

"""The command as people type it: what it prints, and its exit codes."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import backbone_only, official
from PIL import Image

from slotcon_hub.cli import main
from slotcon_hub.weights import table

pytestmark = pytest.mark.usefixtures("home")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-W", "error", "-c", "import sys; from slotcon_hub.cli import main; sys.exit(main())"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*call, *arguments], env=env, capture_output=True, text=True, timeout=100, check=False)


def test_what_import_prints_works(tmp_path, capsys):
    assert main(["import", str(official(tmp_path)), "slotcon_r18.mine"]) == 0
    out = capsys.readouterr().out
    assert "an authors' full checkpoint; its teacher is in the store" in out
    created = [line for line in out.splitlines() if "create_model" in line]
    assert len(created) == 2
    for line in created:
        eval(line, {"timm": timm})
    assert main(["import", str(official(tmp_path)), "slotcon_r18.mine"]) == 1
    assert "add --force to replace it" in capsys.readouterr().err
    assert main(["import", str(official(tmp_path)), "slotcon_r18.mine", "--force"]) == 0


def test_a_published_name_is_printed_without_its_folder(tmp_path, capsys):
    torch.save(timm.create_model("resnet50", num_classes=0).state_dict(), tmp_path / "r50.pth")
    assert main(["import", str(tmp_path / "r50.pth"), "slotcon_r50"]) == 0
    assert 'timm.create_model("slotcon_r50.coco_800ep", pretrained=True)' in capsys.readouterr().out


def test_list_says_where_the_weights_are(tmp_path, home, capsys, monkeypatch):
    assert main(["import", str(backbone_only(tmp_path)), "slotcon_r18.mine"]) == 0
    (home / "slotcon_r50.in1k_100ep").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / f"models--{table.repository('slotcon_r50.in1k_200ep').replace('/', '--')}"
    for file, text in (("refs/main", "abc"), ("snapshots/abc/model.safetensors", "")):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(text)
    capsys.readouterr()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"store: {home}"
    legend = " ".join(line.strip() for line in lines[lines.index("") + 1 : -1])
    assert "AP: box AP / mask AP on COCO val2017, reported by the authors (Mask R-CNN R50-FPN 1x on" in legend
    listed = lines[: lines.index("")]
    assert len(listed) == 1 + len(table.ROWS) + 1
    assert max(map(len, lines[:-1])) <= 100
    where = {tuple(line.split()[:2]): line[listed[0].index("WEIGHTS") :] for line in listed[1:]}
    assert where["slotcon_r50", "in1k_100ep"] == where["slotcon_r18", "mine"] == "store"
    assert where["slotcon_r50", "in1k_200ep"] == "downloaded"
    assert where["slotcon_r50_proto", "in1k_100ep"] == "not yet"
    (line,) = (line for line in listed if line.startswith("slotcon_r50_proto") and "in1k_200ep" in line)
    assert re.split("  +", line) == [
        "slotcon_r50_proto",
        "in1k_200ep",
        "ImageNet-1k",
        "2048",
        "AP 41.8/37.8",
        "not yet",
    ]


def test_list_shows_a_measured_result(capsys, monkeypatch):
    row = table.find("slotcon_r50_proto", "in1k_100ep")
    assert row is not None
    found = table.Result("scenes", "mIoU", 23.456, "prototypes, matched", untrained=9.4, command="python x.py")
    bare = dataclasses.replace(row, results=(), architecture="slotcon_r34")
    rows = (dataclasses.replace(row, results=(found,)), row.backbone, bare)
    monkeypatch.setattr(table, "ROWS", rows)
    assert main(["list"]) == 0
    head, measured, reported, unknown, *rest = capsys.readouterr().out.splitlines()
    column = head.index("RESULT")
    found = [line[column:].split("  ")[0] for line in (measured, reported, unknown)]
    assert found == ["mIoU 23.5", "AP 41.4/37.2", "-"]
    assert "mIoU: mIoU on scenes, measured with this package (prototypes, matched)" in rest


def test_errors_are_one_sentence_and_exit_1(tmp_path, home):
    (tmp_path / "notes.txt").write_text("hello")
    done = command("import", str(tmp_path / "notes.txt"), "slotcon_r18.mine")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("slotcon-hub: ")
    assert done.stderr.count("\n") == 1
    assert "is not a checkpoint" in done.stderr
    assert not home.exists()


@pytest.mark.parametrize("blocked", ["a file", "a file above"])
def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys, blocked):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / ("file" if blocked == "a file" else "file/store")))
    assert main(["import", str(backbone_only(tmp_path)), "slotcon_r18.mine"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["list"]) == 0


@pytest.mark.parametrize("arguments", [[], ["exports"], ["import"], ["import", "a"], ["list", "x"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: slotcon-hub" in capsys.readouterr().err


def test_help_is_a_page(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: slotcon-hub [-h] [--version] COMMAND ..."
    assert len(lines) <= 40
    for name in ("import", "list", "segment", "concepts", "export", "publish", "verify"):
        assert sum(line.startswith(f"    {name} ") for line in lines) == 1
    examples = [line.split()[1:] for line in lines if line.startswith("  slotcon-hub ")]
    assert len(examples) == 3
    assert [main(arguments) for arguments in examples] == [1, 1, 1]  # right usage, but nothing is there


def test_the_organisation_can_be_another():
    code = "import slotcon_hub, timm; print(timm.get_pretrained_cfg('slotcon_r50').hf_hub_id)"
    env = {**os.environ, "SLOTCON_HUB_ORG": "people"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "people/slotcon_r50.coco_800ep"


def test_the_commands_name_is_installed():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'slotcon-hub = "slotcon_hub.cli:main"' in text


@pytest.mark.parametrize("words", ["embed --images . --model", "export --to onnx", "pca x.jpg --model"])
def test_weights_that_cannot_be_downloaded_are_named(words, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([*words.split(), "resnet18.a1_in1k"]) == 1
    said = "resnet18.a1_in1k could not be downloaded: HF_HUB_OFFLINE is set, and it is not in the cache\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_broken_connection_to_the_hub_is_one_sentence_too(monkeypatch, capsys):
    """The client lets exceptions of its HTTP library pass, which are no OSError."""
    kind = type("ConnectError", (Exception,), {"__module__": "httpx"})

    def create(*_: object, **__: object) -> None:
        raise kind("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert main(["export", "resnet18.a1_in1k", "--to", "timm"]) == 1
    assert "resnet18.a1_in1k could not be downloaded: the connection to the Hub broke" in capsys.readouterr().err

"""Model cards: what they say, that the committed ones are up to date, and that every line of code in them runs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from checkpoint_files import one_sentence
from PIL import Image
from torch import nn

from slotcon_hub.models.saving import save_backbone, save_model
from slotcon_hub.publishing.cards import check, render
from slotcon_hub.weights import store, table

ROOT = Path(__file__).parents[3]
NAMES = [row.name for row in table.ROWS]
SECTIONS = ["How to load it", "Training", "Results", "Limits and biases", "Licences", "Costs", "Citation"]

# Runs the blocks of each card one after the other, and compares the shapes in their comments.
RUN = """
import re, sys
checkout, *cards = sys.argv[1:]
for card in cards:
    scope, compared = {}, 0
    text = open(card).read().replace("path/to/slotcon_hub", checkout)
    blocks = re.findall("```python\\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(block, scope)
        for name, shape in re.findall(r"^ *([\\w.]+)(?: = .*)?  # (\\d+(?: x \\d+)+)", block, re.MULTILINE):
            assert list(eval(name, scope).shape) == [int(side) for side in shape.split(" x ")], (name, shape)
            compared += 1
    print(card, len(blocks), compared)
assert "training" not in sys.modules
"""


def published(name: str) -> str:
    """A committed card; one test renders them again."""
    return (ROOT / "model_cards" / f"{name}.md").read_text()


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def sections(card: str) -> list[str]:
    return re.findall("^## (.*)", card, re.MULTILINE)


def saved(net: Any, folder: Path) -> dict[str, bytes]:
    """A model as the files of a repository."""
    save = save_model if hasattr(net, "prototypes") else save_backbone
    save(net, folder, net.pretrained_cfg["input_size"][-1])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config(net: nn.Module, folder: Path) -> dict[str, Any]:
    return json.loads(saved(net, folder)[store.CONFIG])


def test_the_committed_cards_are_up_to_date(tmp_path):
    """If not: python -m slotcon_hub.publishing.cards model_cards."""
    (tmp_path / "slotcon_r50.withdrawn.md").write_text("")
    (tmp_path / "notes.txt").write_text("")
    env = {key: value for key, value in os.environ.items() if key != "SLOTCON_HUB_ORG"}
    subprocess.run(
        [sys.executable, "-m", "slotcon_hub.publishing.cards", str(tmp_path)], cwd=ROOT, env=env, check=True
    )
    found = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert found == {path.name: path.read_text() for path in (ROOT / "model_cards").iterdir()}
    assert set(found) == {f"{name}.md" for name in NAMES}
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_the_table_is_whole(name):
    row = table.find(*name.split("."))
    assert row is not None
    card, results = published(name), (*row.results, *row.backbone.results)
    assert sections(card) == [section for section in SECTIONS if results or section != "Results"]
    assert "$" not in card
    assert f"for {row.epochs} epochs, with {row.prototypes} prototypes" in card
    for word in (row.data, row.images, row.recipe, row.command, row.cost, "research and education"):
        assert word in card
    assert f"has stride {16 if 'nano' in name else 32}" in card
    reported = sum(
        result.command is None for result in (row.backbone.results if row.has_prototypes else row.results)
    )
    assert card.count("reported by the authors |") == reported
    facts = front_matter(card)
    assert facts["library_name"] == "timm"
    assert facts["pipeline_tag"] == "image-feature-extraction"
    assert facts["datasets"] == list(row.datasets)
    assert facts["license"] == row.licence
    assert (facts.get("license_link") == row.origin) == (row.licence == "other")
    assert ("transformers" in facts["tags"]) == ("AutoModel" in card) == (not row.has_prototypes)


REPORTED = {"coco_800ep": (41.0, 37.0), "cocoplus_800ep": (41.8, 37.8), "in1k_100ep": (41.4, 37.2)}
REPORTED["in1k_200ep"] = (41.8, 37.8)


@pytest.mark.parametrize("tag", REPORTED)
def test_the_authors_numbers(tag):
    """Of the paper and its supplementary material, typed again."""
    found = {
        (entry["dataset"]["name"], metric["name"].split(" (")[0]): metric["value"]
        for entry in front_matter(published(f"slotcon_r50.{tag}"))["model-index"][0]["results"]
        for metric in entry["metrics"]
    }
    box, mask = REPORTED[tag]
    expected = {("COCO val2017", "box AP"): box, ("COCO val2017", "mask AP"): mask}
    if tag == "coco_800ep":
        expected |= {("Cityscapes val", "mIoU"): 76.2, ("PASCAL VOC 2012 val", "mIoU"): 71.6}
        expected |= {("ADE20K val", "mIoU"): 39.0}
    assert found == expected
    prototypes = published(f"slotcon_r50_proto.{tag}")
    assert "model-index" not in prototypes  # they are of the backbone alone, and it is said so
    assert f"The backbone alone, slotcon_r50.{tag}:\n\n" in prototypes
    assert all(f" {value} |" in prototypes for value in expected.values())


def test_the_model_index_names_its_source():
    (index,) = front_matter(published("slotcon_r50.coco_800ep"))["model-index"]
    assert index["name"] == "slotcon_r50.coco_800ep"
    for entry in index["results"]:
        assert entry["source"] == {"name": "reported by the authors", "url": "https://arxiv.org/abs/2205.15288"}
        assert all(metric["verified"] is False for metric in entry["metrics"])


def test_a_measured_result_tells_its_command(monkeypatch):
    measured = table.Result(
        "ADE20K val", "mIoU", 12.34, "prototypes, matched", untrained=5.6, command="python x.py"
    )
    row = table.find("slotcon_r50_proto", "in1k_100ep")
    assert row is not None
    changed = replace(row, results=(measured,), licence="apache-2.0")
    monkeypatch.setattr(table, "ROWS", tuple(changed if r is row else r for r in table.ROWS))
    card = render(row.name, repo_id="me/mine")
    line = "| ADE20K val | mIoU | 12.3 | 5.6 | prototypes, matched | measured with this package: `python x.py` |"
    assert line in card
    assert "The weights are under apache-2.0." in card
    facts = front_matter(card)
    assert facts["license"] == "apache-2.0"
    assert "license_name" not in facts
    (entry,) = facts["model-index"][0]["results"]
    assert entry["source"] == {"name": "measured with this package", "url": "https://huggingface.co/me/mine"}
    monkeypatch.setattr(table, "ROWS", (replace(changed, results=(replace(measured, metric="PQ"),)),))
    with pytest.raises(ValueError, match="the Hub's id of ADE20K val or PQ is unknown: add it to"):
        render(row.name)


@pytest.mark.parametrize("name", ["slotcon_r18", "slotcon_nano", "slotcon_r18_proto", "resnet18", "slotcon_proto"])
def test_of_other_weights_only_the_network_is_told(name, tmp_path):
    args = {"hidden_dim": 12, "out_dim": 7, "num_classes": 5} if "proto" in name else {"num_classes": 0}
    card = render(f"{name}.mine", repo_id="me/mine", config=config(timm.create_model(name, **args), tmp_path))
    assert sections(card) == ["How to load it", "What is not known", "Citation"]
    assert "$" not in card
    facts = front_matter(card)
    assert set(facts) == {"library_name", "pipeline_tag", "tags"}
    assert "hf-hub:me/mine" in card
    assert not any(word in card for word in ("COCO", "ImageNet", "reported", "epochs", "github.com", "Apache"))
    assert ("5 semantic prototypes" in card) == ("proto" in name)
    assert ("AutoModel" in card) == ("proto" not in name)
    assert ("torch.hub" in card) == (name not in ("resnet18", "slotcon_proto"))


def test_transformers_is_left_out_where_it_fails(tmp_path):
    """It gives the number of classes itself, and refuses it twice, as timm writes it."""
    found = config(timm.create_model("slotcon_nano"), tmp_path)
    assert "AutoModel" in render("slotcon_nano.mine", config=found)
    assert "AutoModel" not in render("slotcon_nano.mine", config={**found, "model_args": {"num_classes": 0}})


def test_a_published_folder_of_the_table_is_told_in_full(tmp_path):
    found = config(timm.create_model("slotcon_r50"), tmp_path)
    assert found["architecture"] == "resnet50"
    card = render("slotcon_r50.in1k_200ep", repo_id="other/name", config=found)
    assert card == published("slotcon_r50.in1k_200ep").replace("slotcon/slotcon_r50.in1k_200ep", "other/name")


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("slotcon_r18.mine", None, "no published weights slotcon_r18.mine: give the config"),
        ("slotcon_r50", None, "'slotcon_r50' is no name of weights"),
        ("slotcon_r50.mine", {"architecture": "resnet18"}, r"of resnet18, which slotcon_r50\.mine is not"),
        ("slotcon_r18.mine", {"num_classes": None}, "lacks 'num_classes': export the model again"),
        ("slotcon_r50.coco_800ep", {"num_classes": 3}, "has 3 classes, unlike slotcon_r50.coco_800ep"),
    ],
)
def test_what_cannot_be_told_is_refused(name, change, problem):
    given: dict[str, Any] | None = None
    if change is not None:
        given = {
            "architecture": "resnet50",
            "num_classes": 0,
            "pretrained_cfg": {"input_size": [3, 8, 8]},
            **change,
        }
        given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(ValueError, match=problem) as error:
        render(name, config=given)
    one_sentence(error.value)


BAD = {
    "no metadata": (lambda card: card.split("---\n")[2], "has no metadata: begin it with"),
    "no end": (lambda card: card.replace("\n---\n", "\n"), "has no metadata"),
    "YAML": (lambda card: card.replace("license: other", "license: [other"), "metadata are invalid .*correct them"),
    "a list": (lambda card: "---\n- 1\n---\n", "metadata are invalid"),
    "key": (lambda card: card.replace("pipeline_tag:", "pipeline:"), "a key 'pipeline': use only datasets"),
    "library": (
        lambda card: card.replace("library_name: timm", "library_name: tim"),
        "library_name is 'tim': make",
    ),
    "task": (
        lambda card: card.replace("pipeline_tag: image-", "pipeline_tag: photo-"),
        "pipeline_tag is 'photo-",
    ),
    "tag": (lambda card: card.replace("- slotcon\n", "- sloton\n"), "a tag 'sloton': use one of"),
    "no tags": (lambda card: re.sub("tags:\n(- .*\n)*", "", card, count=1), "tags are None: make them a list"),
    "licence": (lambda card: card.replace("license: other", "license: cc0"), "a licence 'cc0': use one of apache"),
    "no link": (lambda card: re.sub("license_link: .*\n", "", card), "add license_name and license_link"),
    "data": (lambda card: card.replace("- coco\n", "- cocoa\n"), "a data set 'cocoa': use one of ILSVRC"),
    "index": (
        lambda card: card.replace("    dataset:", "    data:"),
        "metadata are invalid .*render the card again",
    ),
    "benchmark": (lambda card: card.replace("type: cityscapes", "type: towns"), "evaluation 'towns'"),
    "metric": (lambda card: card.replace("type: mAP", "type: map"), "as object-detection map: use one of"),
    "value": (lambda card: card.replace("value: 41.0", "value: good"), "the value 'good': make it a number"),
    "verified": (lambda card: card.replace("verified: false", "verified: true"), "and verified: false"),
    "source": (lambda card: re.sub("    source:\n(      .*\n)*", "", card), "without a source"),
}


@pytest.mark.parametrize("what", BAD)
def test_invalid_metadata_are_refused(what):
    good = published("slotcon_r50.coco_800ep")
    check(good)
    change, problem = BAD[what]
    bad = change(good)
    assert bad != good
    with pytest.raises(ValueError, match=problem) as error:
        check(bad)
    one_sentence(error.value)


def zeros(name: str) -> nn.Module:
    """A model without the time that random numbers take."""
    with torch.device("meta"):
        net = timm.create_model(name)
    net.to_empty(device="cpu")
    for value in net.state_dict().values():
        value.zero_()
    return net


def test_every_line_of_code_runs(hub, tmp_path):
    """On a stand-in Hub with a repository for each backbone and each of its prototype models."""
    pytest.importorskip("transformers")
    Image.effect_noise((320, 240), 50).convert("RGB").save(tmp_path / "image.jpg")
    names = ["slotcon_r50.coco_800ep", "slotcon_r50_proto.coco_800ep"]
    names += ["slotcon_nano.imagenette_180ep", "slotcon_nano_proto.imagenette_180ep"]
    for name in names:
        hub.add_repo(table.repository(name), saved(zeros(name), tmp_path / name))
    env = {**hub.environment(tmp_path / "home"), "SLOTCON_HUB_HOME": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT), *(str(ROOT / "model_cards" / f"{name}.md") for name in names)],
        cwd=tmp_path,
        env={**env, "SLOTCON_HUB_ORG": table.ORGANISATION},  # vouches for them
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(".md ")[1] for line in done.stdout.splitlines()] == ["5 5", "4 5"] * 2

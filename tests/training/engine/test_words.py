import math
import re
from pathlib import Path

import pytest
from rich.table import Column, Table

from slotcon_hub.cli.table import shorten
from training.engine.words import as_facts, as_options, show
from training.pretraining.metric_names import as_metrics


def test_names_are_shown_letter_for_letter(capsys):
    names = ["photos [2024]", "[void]", "[/]", "[bold]cat[/bold]", ":cat:", "\\[x]"]
    table = Table(Column("[head]"), title="[title]", caption="[/caption]")
    for name in names:
        table.add_row(name)
    show(table)
    show("photos [/2024]")
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*names, "[head]", "[title]", "[/caption]", "photos [/2024]"])


def test_options_are_what_one_types():
    settings = {
        "data": "scenes",
        "slotcon": {"out_dim": 128},
        "probe": None,
        "weight_decay": 1e-5,
        "compile": False,
    }
    settings["trackers"] = ("tensorboard", "wandb")
    expected = {"--data": "scenes", "--out-dim": "128", "--weight-decay": "1e-05", "--compile": "no"}
    assert as_options(settings) == {**expected, "--trackers": "tensorboard, wandb"}


def test_metrics_are_rounded_and_named():
    line = {"step": 12345, "loss": 3.14159, "knn": 0.60512, "new_one": 0.123456, "grad_norm": math.inf, "lr": None}
    expected = {"step": "12,345", "loss": "3.142", "accuracy of 20 nearest neighbours": "60.5%"}
    assert as_metrics(line) == {**expected, "new one": "0.1235"}


def test_facts_that_are_unknown_are_left_out():
    assert as_facts({"revision": None, "micro_batch": 8, "versions": {}}) == {
        "images in a forward of a process": "8"
    }


@pytest.mark.parametrize(
    ("text", "longest", "short"),
    [
        ("short", 5, "short"),
        ("/one/two/three/four", 10, "/on…e/four"),
        ("torch 2.9, timm 1", 9, "torch 2.9, timm 1"),
    ],
)
def test_long_paths_lose_their_middle(text, longest, short):
    assert shorten(text, longest) == short


def test_nothing_prints_past_it():
    root = Path(__file__).parents[3]
    files = [*(root / "training").rglob("*.py"), *(root / "slotcon_hub").rglob("*.py")]
    direct = [
        file.name for file in files if re.search(r"from rich import|import rich|rich.console", file.read_text())
    ]
    assert direct == ["words.py"]

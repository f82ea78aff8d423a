"""What may know what: the package nothing of training, the evaluation nothing of the loop."""

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import slotcon_hub

ROOT = Path(__file__).parent.parent
FOREIGN = {
    "accelerate",
    "datasets",
    "gradio",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "scipy",
    "tensorboard",
    "training",
    "tyro",
}
MODULES = [name for _, name, _ in pkgutil.walk_packages(slotcon_hub.__path__, "slotcon_hub.")]


def imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: siblings are imported absolutely"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_importing_the_package_brings_no_training_library():
    code = f"import slotcon_hub, sys; print(sorted({FOREIGN} & {{name.split('.')[0] for name in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted((ROOT / "slotcon_hub").rglob("*.py")), ids=lambda f: f.name)
def test_the_package_imports_no_training_library(file):
    allowed_on_demand = {"gradio", "onnxruntime"}  # of the page and of exports, which ask for it when they are made
    assert not {name.split(".")[0] for name in imported(file)} & (FOREIGN - allowed_on_demand)


ROOMS = {
    "slotcon_hub": [
        {"convert", "cpu", "distributed", "files", "functional", "images", "settings", "templates"},
        {"weights"},
        {"models"},
        {"objective"},
        {"concepts", "export"},
        {"explore"},
        {"publishing"},
        {"cli"},
    ],
    "training": [
        {"engine"},
        {"data"},
        {"evaluation"},
        {"pretraining", "transfer"},
        {"pretrain", "finetune", "finetune_segmentation"},
        {"tools"},
        {"benchmark", "optim", "reliability", "report"},
    ],
}
"""The rooms of each package, lowest first: a room knows the rooms below it, and itself."""


@pytest.mark.parametrize("package", ROOMS)
def test_arrows_between_rooms_point_down(package):
    level = {room: height for height, rooms in enumerate(ROOMS[package]) for room in rooms}
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        room = file.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imported(file):
            parts = name.split(".")
            if (
                parts[0] == package
                and parts[1:]
                and parts[1] in level
                and parts[1] != room
                and level[parts[1]] >= level[room]
            ):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("file", sorted((ROOT / "training/engine").glob("*.py")), ids=lambda f: f.name)
def test_the_engine_never_names_slotcon(file):
    """Any training can use it: of the package it knows what knows nothing of the method."""
    leaves = ("cli.table", "cpu", "files", "settings")
    names = {name for name in imported(file) if name.startswith("slotcon_hub")}
    assert all(name.startswith(tuple(f"slotcon_hub.{leaf}." for leaf in leaves)) for name in names), names
    tree = ast.parse(file.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name for name in used if "slot" in name.lower() or "proto" in name.lower()}


def test_every_room_is_known():
    for package, levels in ROOMS.items():
        there = {p.name.removesuffix(".py") for p in (ROOT / package).iterdir() if p.name[0] not in "._"}
        rooms = {
            name
            for name in there
            if (ROOT / package / f"{name}.py").exists() or any((ROOT / package / name).glob("*.py"))
        }
        assert rooms <= set().union(*levels), rooms - set().union(*levels)


def test_siblings_of_training_are_imported_by_their_full_name():
    """By its bare name, a sibling called ``datasets`` would shadow the library in a script."""
    bare = {file.stem for file in (ROOT / "training").glob("*.py")} - {"__init__"}
    for file in sorted((ROOT / "training").rglob("*.py")):
        assert not {name.split(".")[0] for name in imported(file)} & bare, file


@pytest.mark.parametrize("name", ["slotcon_hub", *MODULES])
def test_all_is_complete(name):
    """``__all__`` lists names that exist, and no public class or function of the module is left out.

    Left out is what timm alone calls.
    """
    module = importlib.import_module(name)
    if hasattr(module, "__path__") and name != "slotcon_hub":
        return
    assert isinstance(module.__all__, list)
    assert module.__all__ == list(dict.fromkeys(module.__all__))
    assert all(hasattr(module, public) for public in module.__all__)
    defined = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", None) == name and callable(value)
    }
    assert not defined - {"checkpoint_filter_fn"} - set(module.__all__)


def test_wildcard_import_gives_what_all_says():
    names: dict[str, object] = {}
    exec("from slotcon_hub import *", names)
    assert {"SlotCon", "SlotConConfig", "SlotConOutput"} <= set(slotcon_hub.__all__) <= set(names)


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling")
def test_the_wheel_holds_the_package_alone(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    info = f"slotcon_hub-{slotcon_hub.__version__}.dist-info/"
    assert {name.split("/")[0] + "/" for name in files} == {"slotcon_hub/", info}
    package = {str(f.relative_to(ROOT)) for f in (ROOT / "slotcon_hub").rglob("*") if "__pycache__" not in f.parts}
    assert {name for name in files if name.startswith("slotcon_hub/")} == {f for f in package if "." in f}
    assert f"{info}licenses/LICENSE" in files

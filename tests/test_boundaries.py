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
    allowed_on_demand = {"onnxruntime"}  # of the exports, which ask for it when they are made
    assert not {name.split(".")[0] for name in imported(file)} & (FOREIGN - allowed_on_demand)


def test_publishing_is_known_to_the_command_alone():
    package = ROOT / "slotcon_hub"
    knowing = {file for file in package.rglob("*.py") if any("publishing" in name for name in imported(file))}
    assert {file.relative_to(package).parts[0] for file in knowing} == {"cli", "publishing"}


ROOMS = [f for room in ("evaluation", "transfer") for f in sorted((ROOT / "training" / room).rglob("*.py"))]


LEAVES = {
    f"training.{name}"
    for name in ("color", "crops", "layouts", "pictures", "report", "scenes", "stop", "streaming", "views")
}


def of_training(file: Path) -> set[str]:
    """Modules of training that a file imports; an imported name of a leaf counts as the leaf."""
    names = {name for name in imported(file) if name.split(".")[0] == "training"}
    return {next((leaf for leaf in LEAVES if f"{name}.".startswith(f"{leaf}.")), name) for name in names}


@pytest.mark.parametrize("file", ROOMS, ids=lambda f: str(f.relative_to(ROOT)))
def test_evaluation_and_transfer_know_nothing_of_training_but_its_leaves(file):
    room = f"training.{file.relative_to(ROOT / 'training').parts[0]}"
    assert all(f"{name}.".startswith(f"{room}.") for name in of_training(file) - LEAVES), of_training(file)


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_of_training_know_leaves_alone(leaf):
    assert of_training((ROOT / leaf.replace(".", "/")).with_suffix(".py")) <= LEAVES


@pytest.mark.parametrize("file", sorted((ROOT / "training").glob("finetune*.py")), ids=lambda f: f.name)
def test_fine_tuning_knows_the_evaluation_alone(file):
    names = {name for name in imported(file) if name.split(".")[0] == "training"}
    assert all(name.startswith("training.evaluation.") for name in names), names


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

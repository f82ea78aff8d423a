"""Verify a published model, in a folder or on the Hub."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi, ModelCard, snapshot_download

from slotcon_hub.files import sha256
from slotcon_hub.publishing import cards, parity
from slotcon_hub.publishing.release import CARD, FILES, PREVIEW, RECORDED, has_prototypes
from slotcon_hub.weights import hub, store, table
from slotcon_hub.weights.architectures import plain_timm

__all__ = ["Check", "verify_folder", "verify_repository"]

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CARD_KEYS = ("library_name", "pipeline_tag", "tags")
_CONFIG_KEYS = ("name", "architecture", "num_classes", "num_features", "pretrained_cfg")
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    what: str
    """Name of the check, one word."""
    ok: bool
    """Whether it passed."""
    found: str
    """Summary of what was found, or one sentence on what is wrong."""


def verify_folder(folder: str | Path) -> list[Check]:
    """Check a folder: files, SHA-256, configuration, card, and the reference tensors.

    Args:
        folder: as :func:`slotcon_hub.publishing.release.build` writes it, or a download of it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not such a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one, or a repository as <organisation>/<name>")
    whole = {parity.FILE, store.RECORD, store.CONFIG, store.WEIGHTS, CARD}
    if sum((folder / file).is_file() for file in whole) < len(whole) - 1:  # one may be missing
        raise ValueError(
            f"{folder} is no published model: give a folder that `slotcon-hub publish NAME --dry-run` has built or "
            "a download of a repository"
        )
    return _checks(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*")], {})


def verify_repository(repo_id: str, revision: str | None = None) -> list[Check]:
    """Check a repository of the Hub, downloaded into the client's cache, which timm and transformers use too.

    In addition to :func:`verify_folder`, the files must have the SHA-256 that the Hub states.

    Args:
        repo_id: ``<organisation>/<name>``.
        revision: a branch, tag, commit or ``refs/pr/1``; by default the main branch.

    Raises:
        ValueError: the id is invalid.
        RuntimeError: it cannot be downloaded.
    """
    hub.check_repo_id(repo_id)
    with hub.explain_errors(f"{repo_id} was not verified"):
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        folder = Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=list(FILES)))
    siblings = info.siblings or []
    told = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs and file.rfilename in FILES}
    return _checks(folder, [file.rfilename for file in siblings], told)


def _checks(folder: Path, names: list[str], told: dict[str, str]) -> list[Check]:
    checks = [
        _check("files", _files, folder, names),
        _check("sha256", _hashes, folder, told),
        _check("config", _config, folder),
    ]
    whole = all(check.ok for check in checks)
    checks.append(_check("card", _card, folder))
    checks.append(
        _check("parity", _parity, folder)
        if whole  # a model is only built from verified files
        else Check("parity", False, "not recomputed, as files, sha256 or config failed")
    )
    return checks


def _check(what: str, look: Callable[..., str], *args: Any) -> Check:
    try:
        return Check(what, True, look(*args))
    except Exception as error:  # libraries raise anything on damaged files
        return Check(what, False, " ".join((str(error) or type(error).__name__).split()))


def _files(folder: Path, names: Iterable[str]) -> str:
    if absent := [file for file in FILES if file != PREVIEW and not (folder / file).is_file()]:
        raise ValueError(f"{', '.join(absent)} missing: publish it again")
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise ValueError(f"{pickles[0]} may run code when it is loaded: remove it, the safetensors file suffices")
    size = sum((folder / file).stat().st_size for file in FILES if (folder / file).is_file())
    return f"{size / 1e6:.1f} MB, safetensors only"


def _hashes(folder: Path, told: dict[str, str]) -> str:
    """Compare SHA-256 with the recorded ones, those of the Hub, and that of the table if it has these weights."""
    recorded = _read(folder / store.RECORD)
    found = {file: sha256(folder / file) for file in RECORDED if (folder / file).is_file()}
    if differing := sorted(found.keys() ^ recorded.keys()):
        raise ValueError(f"{store.RECORD} and the folder differ in {', '.join(differing)}: publish it again")
    for file, digest in found.items():
        if digest != told.get(file, digest) or digest != recorded[file]:
            raise ValueError(
                f"{file} is not the published file (its SHA-256 differs): remove {(folder / file).resolve()} and "
                "download it again"
            )
    name = str(_read(folder / store.CONFIG).get("name"))
    row = table.find(*name.split(".", 1))
    if row is not None and row.sha256 not in (None, found[store.WEIGHTS]):
        raise ValueError(f"these are not the published weights {name} (their SHA-256 differs)")
    return f"{len(found)} files as recorded, {store.WEIGHTS} {found[store.WEIGHTS][:12]}"


def _config(folder: Path) -> str:
    config = _read(folder / store.CONFIG)
    absent = [key for key in _CONFIG_KEYS if key not in config]
    absent += [key for key in _PREPROCESSING if key not in config.get("pretrained_cfg", ())]
    if absent:
        raise ValueError(f"{store.CONFIG} lacks {', '.join(absent)}: publish it again")
    name = config["name"]
    store.folder(name)  # raises if it is no name
    architecture = name.partition(".")[0]
    if has_prototypes(name):
        expected = {"architecture": architecture}
    else:  # transformers fails on arguments that it passes itself, such as num_classes
        plain, args = plain_timm(architecture)
        expected = {"architecture": plain, "num_classes": 0, "global_pool": "avg"}
        expected["model_args"] = json.loads(json.dumps(args)) or None
    for key, value in expected.items():
        if config.get(key) != value:
            raise ValueError(
                f"{store.CONFIG} has {key}={config.get(key)!r}, and {name} has {value!r}: publish it again"
            )
    output = f"{config['num_classes']} prototypes" if has_prototypes(name) else f"{config['num_features']} features"
    return f"{config['architecture']}, {output}"


def _card(folder: Path) -> str:
    text = (folder / CARD).read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    if absent := [key for key in _CARD_KEYS if not data.get(key)]:
        raise ValueError(f"the card's front matter lacks {', '.join(absent)}: add it")
    if data["library_name"] != "timm":
        raise ValueError(f"the card's library_name is {data['library_name']!r}: it must be timm")
    cards.check(text)
    return f"{data['pipeline_tag']}, licence {data.get('license', 'not stated')}"


def _parity(folder: Path) -> str:
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    apart = parity.deviation(net, folder)
    if not apart <= parity.TOLERANCE:
        raise ValueError(
            f"the outputs differ from those in {parity.FILE} by {apart:.1e} (allowed: "
            f"{parity.TOLERANCE:.0e}): update torch and timm, or publish it again"
        )
    return f"largest deviation {apart:.1e} (allowed: {parity.TOLERANCE:.0e})"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is damaged: remove {path.resolve()} and download it again")
    return content

"""A Space of the Hub on which one tries a published prototype model: the page of ``slotcon-hub explore``."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceInfo, hf_hub_download

from slotcon_hub import __version__
from slotcon_hub.explore.collection import EXAMPLES
from slotcon_hub.publishing.release import CARD, has_prototypes
from slotcon_hub.publishing.upload import check_login, file_names, upload
from slotcon_hub.templates import render_template
from slotcon_hub.weights import hub, table

__all__ = ["build_space", "publish_space"]

_APP, _REQUIREMENTS, _EXAMPLES = "app.py", "requirements.txt", "examples"
_HERE = Path(__file__).parent


def build_space(name: str, folder: Path, *, install_from: str, repo_id: str | None = None) -> Path:
    """Build the folder of a Space: app, requirements, card, and drawn scenes as examples.

    Its model is loaded from the Hub, so that the Space needs nothing else than this folder and this package.

    Args:
        name: of a prototype model, ``<architecture>.<tag>``, or an architecture of the table for its default tag.
        folder: new or empty; removed after an error.
        install_from: URL from which pip installs this package in the Space, such as git+https://HOST/slotcon_hub.
        repo_id: of the published model; by default that of the name.

    Raises:
        ValueError: the name is of a backbone, or ``repo_id`` or ``install_from`` is invalid.
        FileExistsError: the folder is not empty.
    """
    name = table.full_name(name)
    repo_id = repo_id or table.repository(name)
    hub.check_repo_id(repo_id)
    if not has_prototypes(name):
        raise ValueError(f"{name} is a backbone, which has no groups to show: publish the Space of a *_proto model")
    if not re.fullmatch(r"[a-z+]+://\S+", install_from):
        raise ValueError(f"{install_from!r} is no URL that pip installs from, such as git+https://HOST/slotcon_hub")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    row = table.find(*name.split(".", 1))
    facts: dict[str, Any] = {
        "name": name,
        "repo_id": repo_id,
        "install_from": install_from,
        "licence": row.licence if row and row.licence != "other" else None,
    }
    try:
        shutil.copytree(EXAMPLES, folder / _EXAMPLES)
        for file, template in (
            (_APP, "space_app.jinja"),
            (_REQUIREMENTS, "space_requirements.jinja"),
            (CARD, "space.md"),
        ):
            (folder / file).write_text(render_template(_HERE / template, **facts), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def publish_space(
    name: str, *, install_from: str, repo_id: str | None = None, private: bool = False, force: bool = False
) -> str:
    """Publish the Space of a model that is on the Hub, under the same ``<organisation>/<name>``.

    Args:
        name: as for :func:`build_space`.
        install_from: likewise.
        repo_id: likewise.
        private: create it as a private Space.
        force: replace all content of the Space, even of another one.

    Returns:
        The URL.

    Raises:
        ValueError: there is no token, the model is not there, the Space has other content or is public despite
            ``private``, or the download differs.
        RuntimeError: the Hub or the connection fails.
    """
    name = table.full_name(name)
    repo_id = repo_id or table.repository(name)
    check_login()
    api, stopped = HfApi(), f"publishing the Space {repo_id} stopped"
    with tempfile.TemporaryDirectory(prefix="slotcon-hub-", ignore_cleanup_errors=True) as scratch:
        cache = Path(scratch) / "cache"
        folder = build_space(name, Path(scratch) / "space", install_from=install_from, repo_id=repo_id)
        with hub.explain_errors(stopped):
            published = api.repo_exists(repo_id)
        if not published:
            raise ValueError(f"{repo_id} is not on the Hub, or is private: first run `slotcon-hub publish {name}`")
        with hub.explain_errors(stopped):
            url = str(
                api.create_repo(
                    repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
                )
            )
            before = api.space_info(repo_id)
            ours = _is_ours(before, cache)
        if private and not before.private:
            raise ValueError(f"the Space {repo_id} exists and is public: make it private on its page")
        if not ours and not force:
            raise ValueError(f"the Space {repo_id} has other content: replace all of it with --force")
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        upload(
            folder, files, before, cache, message=f"The page of slotcon_hub {__version__} for {name}", force=force
        )
    return url


def _is_ours(info: SpaceInfo, cache: Path) -> bool:
    """Whether a Space is new, or one of ours."""
    names = file_names(info) - {CARD}
    if not names:
        return True
    if _REQUIREMENTS not in names:
        return False
    path = hf_hub_download(info.id, _REQUIREMENTS, repo_type="space", revision=info.sha, cache_dir=cache)
    return "slotcon-hub[explore]" in Path(path).read_text(encoding="utf-8", errors="replace")

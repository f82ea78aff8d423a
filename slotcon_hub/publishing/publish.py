"""Publish weights as a repository of the Hub: build, upload, download again, compare, tag."""

import json
import tempfile
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_download

from slotcon_hub import __version__
from slotcon_hub.files import sha256
from slotcon_hub.publishing.release import CARD, FILES, build
from slotcon_hub.publishing.upload import check_login, file_names, upload
from slotcon_hub.publishing.verify import verify_folder
from slotcon_hub.weights import hub, store, table

__all__ = ["Published", "publish"]


@dataclass(frozen=True)
class Published:
    """Location of a published model."""

    repo_id: str
    url: str
    revision: str
    """The commit."""
    tag: str | None
    """Tag of the commit; None for a pull request."""
    pull_request: str | None
    """Revision of the pull request, such as ``refs/pr/1``, if one was opened."""
    sha256: str
    """SHA-256 of ``model.safetensors``, for the table."""


def publish(
    name: str,
    *,
    checkpoint: Path | None = None,
    repo_id: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    force: bool = False,
    preview: Path | None = None,
) -> Published:
    """Publish weights in one commit, and tag it after a download is found equal.

    The tag is ``v<version of this package>``, with ``-1``, ``-2`` and so on if that is another commit: tags never
    move. The same call resumes after an interruption, and makes no commit if nothing has changed. The token is that
    of the Hub's client.

    Args:
        name: ``<architecture>.<tag>``, or an architecture of the table for its default tag.
        checkpoint: as for :func:`slotcon_hub.publishing.release.build`.
        repo_id: ``<organisation>/<name>``, by default that of the name; created if it does not exist.
        private: create it as a private repository.
        create_pr: open a pull request instead, without a tag.
        force: replace all content of the repository, even of other models.
        preview: a PNG or JPEG image for the card.

    Raises:
        ValueError: there is no token, the repository has other content or is public despite ``private``, the folder
            cannot be built or fails its checks, or the download differs.
        RuntimeError: the Hub or the connection fails.
    """
    name = table.full_name(name)
    repo_id = repo_id or table.repository(name)
    check_login()
    api, stopped = HfApi(), f"publishing {repo_id} stopped"
    with tempfile.TemporaryDirectory(prefix="slotcon-hub-", ignore_cleanup_errors=True) as scratch:
        folder, cache = Path(scratch) / "model", Path(scratch) / "cache"
        build(name, folder, checkpoint=checkpoint, repo_id=repo_id, preview=preview)
        if failed := next((check for check in verify_folder(folder) if not check.ok), None):
            raise ValueError(f"{name} was not published, its {failed.what} failed: {failed.found}")
        with hub.explain_errors(stopped):
            url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
            before = api.model_info(repo_id)
            config = _published_config(before, cache)
        _check_replaceable(before, config, name, private=private, force=force)
        commit = upload(
            folder,
            FILES,
            before,
            cache,
            message=f"Publish {name} with slotcon_hub {__version__}",
            force=force,
            create_pr=create_pr,
        )
        weights = sha256(folder / store.WEIGHTS)
        with hub.explain_errors(stopped):
            tag = None if create_pr else _tag(api, repo_id, commit.oid)
    return Published(repo_id, commit.pr_url or url, commit.oid, tag, commit.pr_revision, weights)


def _published_config(info: ModelInfo, cache: Path) -> Any:
    """``config.json`` of a repository that may be one of ours, else None."""
    if not {store.CONFIG, store.RECORD} <= file_names(info):
        return None
    path = hf_hub_download(info.id, store.CONFIG, revision=info.sha, cache_dir=cache)
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError:
        return None


def _check_replaceable(info: ModelInfo, config: Any, name: str, *, private: bool, force: bool) -> None:
    if private and not info.private:
        raise ValueError(f"{info.id} exists and is public: make it private on its page, or leave out --private")
    others = sorted(file_names(info) - {CARD})
    ours = isinstance(config, dict) and config.get("name") == name
    if others and not ours and not force:
        raise ValueError(
            f"{info.id} has other content than {name} ({', '.join(others[:3])}): choose another --repo-id, or "
            "replace all of it with --force"
        )


def _tag(api: HfApi, repo_id: str, revision: str) -> str:
    taken = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    version = f"v{__version__}"
    names = chain([version], (f"{version}-{n}" for n in count(1)))
    name = next(name for name in names if taken.get(name, revision) == revision)
    if name not in taken:
        api.create_tag(repo_id, tag=name, revision=revision)
    return name

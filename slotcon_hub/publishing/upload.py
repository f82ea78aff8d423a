"""Upload a folder to a repository of the Hub in one commit, download it again and compare."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    SpaceInfo,
    get_token,
    snapshot_download,
)

from slotcon_hub.files import sha256
from slotcon_hub.weights import hub

__all__ = ["changes", "check_login", "file_names", "upload"]

_OF_THE_HUB = ".gitattributes"


def check_login() -> None:
    """Check that the Hub's client has a token, and may connect.

    Raises:
        ValueError: it has none, or HF_HUB_OFFLINE is set.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to publish, or build the folder with --dry-run")
    if get_token() is None:
        raise ValueError("publishing needs a token that may write: log in with `hf auth login`, or set HF_TOKEN")


def file_names(info: ModelInfo | SpaceInfo) -> set[str]:
    """Names of a repository's files, without that of the Hub."""
    return {file.rfilename for file in info.siblings or ()} - {_OF_THE_HUB}


def changes(
    folder: Path, files: Sequence[str], info: ModelInfo | SpaceInfo, force: bool
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """The changes that bring the files of a folder into a repository.

    Args:
        folder: with some of ``files``; the others are deleted.
        files: all that may be published.
        info: of the repository.
        force: delete files that others added, too.
    """
    new = [file for file in files if (folder / file).is_file()]
    stale = file_names(info) - set(new)
    if not force:
        stale &= set(files)
    additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in new]
    return [*additions, *(CommitOperationDelete(path_in_repo=file) for file in sorted(stale))]


def upload(
    folder: Path,
    files: Sequence[str],
    info: ModelInfo | SpaceInfo,
    cache: Path,
    *,
    message: str,
    force: bool,
    create_pr: bool = False,
) -> CommitInfo:
    """Make the commit, and compare what comes back.

    Args:
        folder: as for :func:`changes`.
        files: likewise.
        info: likewise; the commit fails if the repository has changed since.
        cache: an empty folder for the download.
        message: of the commit.
        force: as for :func:`changes`.
        create_pr: open a pull request instead.

    Raises:
        ValueError: the download differs.
        RuntimeError: the Hub or the connection fails.
    """
    kind = "space" if isinstance(info, SpaceInfo) else "model"
    with hub.explain_errors(f"publishing {info.id} stopped"):
        commit = HfApi().create_commit(
            info.id,
            changes(folder, files, info, force),
            commit_message=message,
            parent_commit=info.sha,
            create_pr=create_pr,
            repo_type=kind,
        )
        copy = Path(
            snapshot_download(
                info.id, revision=commit.oid, cache_dir=cache, allow_patterns=list(files), repo_type=kind
            )
        )
    for file in files:
        sent, came = folder / file, copy / file
        if sent.is_file() and not (came.is_file() and sha256(came) == sha256(sent)):
            raise ValueError(
                f"{file} differs after a download from {info.id} (its SHA-256 differs), so nothing was tagged: "
                "run it again, on another network if that does not help"
            )
    return commit

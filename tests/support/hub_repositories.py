"""The repositories of a Hub, in memory: commits are immutable snapshots, references are names for them."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".parquet")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class HubError(Exception):
    """A refusal; the client picks its exception by `code`, and remembers that a `commit` lacks a file."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        super().__init__(status, code, message)
        headers = {"X-Error-Code": code, "X-Error-Message": ascii(message)[1:-1], "X-Repo-Commit": commit}
        self.status, self.message = status, message
        self.headers = {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class Blob:
    """A file's content. Git keeps `oid`; of an LFS file that is the object id of a small pointer."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @cached_property
    def oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def described(self, checksum: str) -> dict[str, Any]:
        """Size and LFS object, whose checksum has another name in every part of the API."""
        size = len(self.content)
        lfs = {"lfs": {checksum: self.sha256, "size": size, "pointerSize": len(self.pointer)}}
        return {"size": size, **(lfs if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files. The same history has the same id in every run."""

    files: Mapping[str, Blob]
    title: str
    parent: "Commit | None" = None

    @cached_property
    def oid(self) -> str:
        tree = sorted((path, blob.oid) for path, blob in self.files.items())
        history = [self.parent and self.parent.oid, self.title, tree]
        return hashlib.sha1(json.dumps(history).encode()).hexdigest()

    def file(self, path: str) -> Blob:
        if path not in self.files:
            raise HubError(404, "EntryNotFound", "Entry not found", self.oid)
        return self.files[path]

    def tree(self, folder: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        """The files and folders below a folder, as the API lists them."""
        prefix = f"{folder}/" if folder else ""
        files = [
            {"type": "file", "path": path, "oid": blob.oid, **blob.described("oid")}
            for path, blob in self.files.items()
            if path.startswith(prefix)
        ]
        if not files:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist", self.oid)
        parents = {str(parent) for file in files for parent in PurePosixPath(file["path"]).parents} - {"."}
        folders = [{"type": "directory", "path": p, "oid": "0" * 40} for p in parents if p.startswith(prefix)]
        entries = [e for e in files + folders if recursive or "/" not in e["path"].removeprefix(prefix)]
        return sorted(entries, key=lambda entry: entry["path"])


@dataclass
class Repository:
    """References into one history, and the LFS objects that were uploaded but not necessarily committed."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._append("main", Commit({".gitattributes": Blob(GIT_ATTRIBUTES, lfs=False)}, "initial commit"))

    def _append(self, branch: str, commit: Commit) -> None:
        self.commits[commit.oid] = commit
        references = self.pulls if branch.startswith("refs/pr/") else self.branches
        references[branch] = commit.oid

    def at(self, revision: str = "main") -> Commit:
        """The commit that a branch, a tag, a pull request or a (shortened) commit id names."""
        references = self.tags | self.branches | self.pulls
        oid = references.get(revision.removeprefix("refs/heads/"))
        if oid is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            oid = next((known for known in self.commits if known.startswith(revision)), None)
        if oid is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def commit(
        self,
        additions: Mapping[str, Blob],
        deletions: Iterable[str] = (),
        *,
        title: str = "commit",
        revision: str = "main",
        parent: str | None = None,
        create_pr: bool = False,
    ) -> Commit:
        """Add and delete files (a trailing slash deletes a folder) on a branch, or in a new `refs/pr/N`."""
        base = self.at(revision)
        if parent is not None and not base.oid.startswith(parent):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for gone in deletions:
            matches = [path for path in files if path == gone or (gone.endswith("/") and path.startswith(gone))]
            if not matches:
                raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
            for path in matches:
                del files[path]
        if create_pr:
            revision = f"refs/pr/{len(self.pulls) + 1}"
        elif revision not in self.branches | self.pulls:
            raise HubError(400, "", f"Not a branch: {revision}")
        commit = Commit(files | additions, title, base)
        self._append(revision, commit)
        return commit

    def tag(self, name: str, revision: str = "main") -> None:
        if name in self.tags:
            raise HubError(409, "", "Tag reference exists already")
        self.tags[name] = self.at(revision).oid

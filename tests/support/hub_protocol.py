"""What a Hugging Face Hub answers to its client, as far as models need it: one method per endpoint."""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from hub_repositories import LFS_SUFFIXES, Blob, HubError, Repository

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
FIELDS = {"{repo}": "(?P<repo_id>[^/]+/[^/]+?)", "{rev}": "(?P<rev>[^/]+)", "{path}": "(?P<path>.+)"}
ROUTES: list[tuple[re.Pattern[str], Callable[..., "Answer"]]] = []


@dataclass
class Request:
    """What the client sent (secrets included: tests look for them) and the status that it got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    status: int = 0

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # close the connection in the middle of the body


def route(method: str, template: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Have a method of `HubProtocol` answer these requests; it receives the fields of the template, unquoted."""
    for name, pattern in FIELDS.items():
        template = template.replace(name, pattern)

    def register(handler: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((re.compile(f"(?:{method}) {template}"), handler))
        return handler

    return register


def as_json(content: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def front_matter(readme: str) -> dict[str, Any]:
    """A model card's metadata; raises `yaml.YAMLError`."""
    found = FRONT_MATTER.match(readme)
    metadata = yaml.safe_load(found[1]) if found else None
    return metadata if isinstance(metadata, dict) else {}


class HubProtocol:
    """`tokens` may read and write everything; `strangers` are valid tokens of users without any rights here."""

    def __init__(self, tokens: Iterable[str], strangers: Iterable[str], user: str) -> None:
        self.tokens, self.strangers, self.user = set(tokens), set(strangers), user
        self.repos: dict[str, Repository] = {}
        self.corrupted: set[tuple[str, str]] = set()
        self.url = self.cdn_url = ""

    def serve(self, request: Request) -> Answer:
        if request.token and request.token not in self.tokens | self.strangers:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        line = f"{request.method} {urlsplit(request.path).path}"
        for pattern, handler in ROUTES:
            if found := pattern.fullmatch(line):
                return handler(self, request, **{name: unquote(value) for name, value in found.groupdict().items()})
        raise HubError(404, "", "Not Found")

    def _repo(self, request: Request, repo_id: str, needs: str = "read") -> Repository:
        """The repository, if the token suffices to "read" it, to "propose" a change of it or to "write" it."""
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and request.token not in self.tokens):
            raise HubError(404 if request.token else 401, "RepoNotFound", "Repository not found")
        if request.token is None and needs != "read":
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        if request.token not in self.tokens and needs == "write":
            raise HubError(403, "", "You don't have the required permissions")
        return repo

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        if request.token is None:
            raise HubError(401, "", "Invalid username or password.")
        return as_json({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        if request.token not in self.tokens:
            raise HubError(403 if request.token else 401, "", "You may not create a repository")
        asked = request.json()
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        place = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            return as_json({"error": "You already created this model repo", **place}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.repos[repo_id] = Repository(repo_id, private)
        return as_json(place)

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        try:
            known = front_matter(request.json()["content"])
        except yaml.YAMLError as error:
            return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if known else [{"message": "empty or missing yaml metadata in repo card"}]
        return as_json({"errors": [], "warnings": warnings})

    @route("POST", "/api/models/{repo}/preupload/{rev}")
    def preupload(self, request: Request, repo_id: str, rev: str) -> Answer:
        needs = "propose" if "create_pr" in request.query else "write"
        commit = self._repo(request, repo_id, needs).at(rev)
        files = []
        for path in (file["path"] for file in request.json()["files"]):
            known = {"oid": commit.files[path].etag} if path in commit.files else {}
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return as_json({"files": files})

    @route("POST", "/{repo}[.]git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo_id: str) -> Answer:
        batch = request.json()
        repo = self._repo(request, repo_id, needs="write" if "ref" in batch else "propose")
        objects = []
        for wanted in batch["objects"]:
            store = {"upload": {"href": f"{self.url}/lfs/{repo_id}/{wanted['oid']}"}}
            verify = {"verify": {"href": f"{self.url}/api/models/{repo_id}/lfs-verify"}}
            objects.append(wanted | ({} if wanted["oid"] in repo.objects else {"actions": store | verify}))
        return as_json({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/{repo}/{path}")
    def lfs_store(self, request: Request, repo_id: str, path: str) -> Answer:
        if Blob(request.body, lfs=True).sha256 != path:
            raise HubError(400, "", "The content does not have the announced sha256")
        self.repos[repo_id].objects[path] = request.body
        return Answer()

    @route("POST", "/api/models/{repo}/lfs-verify")
    def lfs_verify(self, request: Request, repo_id: str) -> Answer:
        announced = request.json()
        content = self._repo(request, repo_id).objects.get(announced["oid"])
        if content is None or len(content) != announced["size"]:
            raise HubError(404, "", "Object not found in storage")
        return as_json({})

    @route("POST", "/api/models/{repo}/commit/{rev}")
    def commit(self, request: Request, repo_id: str, rev: str) -> Answer:
        create_pr = "create_pr" in request.query
        repo = self._repo(request, repo_id, needs="propose" if create_pr else "write")
        header: dict[str, str] = {}
        additions: dict[str, Blob] = {}
        deletions: list[str] = []
        for line in request.body.splitlines():
            key, value = (part := json.loads(line))["key"], part["value"]
            if key == "header":
                header = value
            elif key == "file":
                additions[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile" and value["oid"] in repo.objects:
                additions[value["path"]] = Blob(repo.objects[value["oid"]], lfs=True)
            elif key in ("deletedFile", "deletedFolder"):
                deletions.append(value["path"].rstrip("/") + "/" * (key == "deletedFolder"))
            else:
                raise HubError(400, "", f"Cannot commit {key} {value.get('path')}")
        parent = header.get("parentCommit")
        made = repo.commit(
            additions, deletions, title=header["summary"], revision=rev, parent=parent, create_pr=create_pr
        )
        place = f"{self.url}/{repo_id}"
        pull = {"pullRequestUrl": f"{place}/discussions/{len(repo.pulls)}"} if create_pr else {}
        return as_json({"success": True, "commitOid": made.oid, "commitUrl": f"{place}/commit/{made.oid}", **pull})

    @route("POST", "/api/models/{repo}/tag/{rev}")
    def tag(self, request: Request, repo_id: str, rev: str) -> Answer:
        self._repo(request, repo_id, needs="write").tag(request.json()["tag"], rev)
        return as_json({})

    @route("GET", "/api/models/{repo}")
    @route("GET", "/api/models/{repo}/revision/{rev}")
    def info(self, request: Request, repo_id: str, rev: str = "main") -> Answer:
        repo = self._repo(request, repo_id)
        commit = repo.at(rev)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
        if "blobs" in request.query:
            for sibling, blob in zip(siblings, commit.files.values(), strict=True):
                sibling |= {"blobId": blob.oid, **blob.described("sha256")}
        readme = commit.files.get("README.md", Blob(b"", lfs=False)).content
        card = front_matter(readme.decode())
        told = {key: card[key] for key in ("tags", "library_name", "pipeline_tag") if key in card}
        told |= {
            "id": repo.id,
            "sha": commit.oid,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
        }
        return as_json({**told, "cardData": card, "siblings": siblings})

    @route("GET", "/api/models/{repo}/tree/{rev}")
    @route("GET", "/api/models/{repo}/tree/{rev}/{path}")
    def tree(self, request: Request, repo_id: str, rev: str, path: str = "") -> Answer:
        recursive = request.query.get("recursive", "").lower() in ("1", "true")
        return as_json(self._repo(request, repo_id).at(rev).tree(path, recursive))

    @route("POST", "/api/models/{repo}/paths-info/{rev}")
    def paths_info(self, request: Request, repo_id: str, rev: str) -> Answer:
        asked = parse_qs(request.body.decode())["paths"]
        entries = self._repo(request, repo_id).at(rev).tree()
        return as_json([entry for entry in entries if entry["path"] in asked])

    @route("GET", "/api/models/{repo}/refs")
    def refs(self, request: Request, repo_id: str) -> Answer:
        repo = self._repo(request, repo_id)

        def listed(prefix: str, references: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": oid} for n, oid in references.items()]

        kinds = {"branches": listed("refs/heads/", repo.branches), "tags": listed("refs/tags/", repo.tags)}
        return as_json({**kinds, "converts": [], "pullRequests": listed("", repo.pulls)})

    @route("HEAD|GET", "/{repo}/resolve/{rev}/{path}")
    def resolve(self, request: Request, repo_id: str, rev: str, path: str) -> Answer:
        repo = self._repo(request, repo_id)
        if repo.gated and request.token not in self.tokens:
            raise HubError(403 if request.token else 401, "GatedRepo", f"Access to model {repo_id} is restricted")
        commit = repo.at(rev)
        blob = commit.file(path)
        known = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self._content(request, repo_id, path, blob, known)
        known |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.etag}"'}
        known["ETag"] = f'"{blob.oid}"'
        return Answer(302, b"", known | {"Location": f"{self.cdn_url}/{repo_id}/{commit.oid}/{quote(path)}"})

    @route("HEAD|GET", "/cdn/{repo}/{rev}/{path}")
    def cdn(self, request: Request, repo_id: str, rev: str, path: str) -> Answer:
        """Open to whoever has the link, as signed links are."""
        blob = self.repos[repo_id].at(rev).file(path)
        return self._content(request, repo_id, path, blob, {"ETag": f'"{blob.sha256}"', "Accept-Ranges": "bytes"})

    def _content(self, request: Request, repo_id: str, path: str, blob: Blob, known: dict[str, str]) -> Answer:
        content = bytearray(blob.content)
        size = len(content)
        if (repo_id, path) in self.corrupted:
            content[size // 2] ^= 1
        if not (span := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))):
            return Answer(200, bytes(content), known)
        first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
        if first > last:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        return Answer(
            206, bytes(content[first : last + 1]), known | {"Content-Range": f"bytes {first}-{last}/{size}"}
        )

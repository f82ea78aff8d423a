"""A Hugging Face Hub on loopback for the real client: what models need of it, and faults on demand."""

import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from os import environ
from pathlib import Path
from typing import Any, NoReturn

import pytest
import werkzeug
from huggingface_hub.utils.sha import git_hash
from werkzeug import Response
from werkzeug.exceptions import HTTPException, abort
from werkzeug.routing import BaseConverter, Map, Rule
from werkzeug.serving import make_server

CLIENT_WARNING = "ignore:Use 'content=:DeprecationWarning"  # of httpx2, at the client's PUT
FOREIGN = re.compile("HF_|HUGGING|.*_PROXY$", re.IGNORECASE)  # variables that lead the client elsewhere
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".parquet")
TOKEN, STRANGER = "hf_secret", "hf_other"  # of who may write everywhere, and of who has no rights but is known


class Request(werkzeug.Request):
    @property
    def token(self) -> str | None:
        return self.authorization.token if self.authorization else None


class RepoConverter(BaseConverter):
    regex = "(?:spaces/)?[^/]+/[^/]+"  # Spaces have ids of their own


ROUTES = Map(converters={"repo": RepoConverter})


def route(method: str, rule: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a method of `HubServer` answer these requests with a response, or with what it is in JSON."""
    return lambda handler: ROUTES.add(Rule(rule, methods=[method], endpoint=handler)) or handler


def refuse(status: int, message: str, code: str = "", **told: str) -> NoReturn:
    """The client picks its exception by `code`."""
    abort(Response(json.dumps({"error": message, **told}), status, {"X-Error-Code": code}))


def checksum(path: str, content: bytes) -> str:
    return sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else git_hash(content)


def described(path: str, content: bytes) -> dict[str, Any]:
    """A file in a list of them; the checksum of an LFS object has another name in each of the lists."""
    known = {"path": path, "rfilename": path, "oid": checksum(path, content), "size": len(content)}
    lfs = {"oid": known["oid"], "sha256": known["oid"], "size": len(content), "pointerSize": 134}
    return {"type": "file", **known, **({"lfs": lfs} if path.endswith(LFS_SUFFIXES) else {})}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, bytes]


@dataclass
class Repository:
    """Its `heads` are the branch and the pull requests; `objects` are uploads, not necessarily committed yet."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def at(self, revision: str = "main") -> Commit:
        oid = (self.tags | self.heads).get(revision, revision)
        return self.commits.get(oid) or refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, added: Mapping[str, bytes], deleted: Iterable[str] = (), title="", head="main") -> Commit:
        files = {**(self.at().files if self.commits else {}), **added}
        for path in deleted:
            del files[path]
        commit = Commit(f"{len(self.commits):040x}", title, files)
        self.commits[commit.oid], self.heads[head] = commit, commit.oid
        return commit


class HubServer:
    """An endpoint that raises something unforeseen answers 500, and `close` raises it again."""

    def __init__(self) -> None:
        self.repos: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[tuple[str, int | None]] = []
        self.corrupted: set[tuple[str, str]] = (
            set()
        )  # of these files one byte arrives flipped, unlike their checksum
        self._errors: list[Exception] = []
        self._lock = threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # `requests` is the log
        self._http = make_server("127.0.0.1", 0, Request.application(self._answer), threaded=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._errors:
            raise self._errors[0]

    def add_repo(self, repo_id: str, files: Mapping[str, bytes] | None = None, **kind: bool) -> Repository:
        """A repository whose second commit has these files (the first is the Hub's own, with .gitattributes)."""
        repo = self.repos[repo_id] = Repository(**kind)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit")
        if files:
            repo.commit(files)
        return repo

    def fail(self, request: str, times: int = 1, status: int | None = 503) -> None:
        """Answer the next requests whose "METHOD /path" this finds with a status; None: send half of the answer."""
        self.faults += [(request, status)] * times

    def environment(self, home: Path) -> dict[str, str]:
        """For a subprocess: this Hub, an empty cache, and no token."""
        kept = {key: value for key, value in environ.items() if not FOREIGN.match(key)}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return kept | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def adopt(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """For this process: the same as `environment`, for a client that has been imported already."""
        for key in filter(FOREIGN.match, list(environ)):
            monkeypatch.delenv(key)
        for key, value in self.environment(home).items():
            monkeypatch.setenv(key, value)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"), "ENDPOINT": self.url}
        settings |= {"HF_HUB_DISABLE_XET": True, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        for name, setting in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", setting)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", self.url)

    def _answer(self, request: Request) -> Response:
        request.get_data()
        with self._lock:
            self.requests.append(request)
            line = f"{request.method} {request.path}"
            fault = next((fault for fault in self.faults if re.search(fault[0], line)), None)
            if fault:
                self.faults.remove(fault)
            try:
                if fault and fault[1]:
                    refuse(fault[1], "Fault injected")
                response = self._serve(request)
            except HTTPException as refusal:
                response = refusal.get_response()
            except Exception as error:
                self._errors.append(error)
                response = Response(repr(error), 500)
        if fault and fault[1] is None:
            body = response.get_data()
            response.headers["Content-Length"] = str(len(body))
            response.response = [body[: len(body) // 2]]
        return response

    def _serve(self, request: Request) -> Response:
        if request.token not in (None, TOKEN, STRANGER):
            refuse(401, "Invalid credentials in Authorization header")
        path = request.path.replace("/api/spaces/", "/api/models/spaces/")
        handler, names = ROUTES.bind("").match(path, request.method)
        answer = handler(self, request, **names)
        return answer if isinstance(answer, Response) else Response(json.dumps(answer), mimetype="application/json")

    def _repo(self, request: Request, repo_id: str, write: bool = False) -> Repository:
        """The repository, if the token suffices; whoever may read it may open a pull request."""
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and request.token != TOKEN):
            refuse(404 if request.token else 401, "Repository not found", "RepoNotFound")
        if write and request.token != TOKEN:
            refuse(403, "You don't have the required permissions")
        return repo

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Any:
        if request.token != TOKEN:
            refuse(403, "You may not create a repository")
        asked = request.json
        space = "spaces/" if asked.get("type") == "space" else ""
        repo_id = f"{space}{asked['organization']}/{asked['name']}"
        if repo_id in self.repos:
            refuse(409, "You already created this model repo", url=f"{self.url}/{repo_id}")
        self.add_repo(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{self.url}/{repo_id}"}

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Any:
        return {"errors": [], "warnings": []}

    @route("POST", "/api/models/<repo:repo_id>/preupload/<rev>")
    def _preupload(self, request: Request, repo_id: str, rev: str) -> Any:
        known = self._repo(request, repo_id, write="create_pr" not in request.args).at(rev).files
        files = request.json["files"]
        for file in files:
            path = file["path"]
            file |= {"uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular", "shouldIgnore": False}
            file["oid"] = checksum(path, known[path]) if path in known else None
        return {"files": files}

    @route("POST", "/<repo:repo_id>.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, repo_id: str) -> Any:
        repo, objects = self._repo(request, repo_id), request.json["objects"]
        for wanted in objects:
            if wanted["oid"] not in repo.objects:
                wanted["actions"] = {"upload": {"href": f"{self.url}/lfs/{repo_id}/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/<repo:repo_id>/<oid>")
    def _lfs_store(self, request: Request, repo_id: str, oid: str) -> Any:
        assert sha256(request.get_data()).hexdigest() == oid
        self.repos[repo_id].objects[oid] = request.get_data()
        return {}

    @route("POST", "/api/models/<repo:repo_id>/commit/main")
    def _commit(self, request: Request, repo_id: str) -> Any:
        create_pr = "create_pr" in request.args
        repo, place = self._repo(request, repo_id, write=not create_pr), f"{self.url}/{repo_id}"
        of: dict[str, list[Any]] = {"file": [], "lfsFile": [], "deletedFile": []}
        for line in request.get_data().splitlines():
            of.setdefault((part := json.loads(line))["key"], []).append(part["value"])
        if of["header"][0].get("parentCommit", repo.at().oid) != repo.at().oid:
            refuse(412, "A commit has happened since. Please refresh and try again.")
        added = {file["path"]: base64.b64decode(file["content"]) for file in of["file"]}
        added |= {file["path"]: repo.objects[file["oid"]] for file in of["lfsFile"]}
        deleted, number = [file["path"] for file in of["deletedFile"]], len(repo.heads)
        head = f"refs/pr/{number}" if create_pr else "main"
        oid = repo.commit(added, deleted, of["header"][0]["summary"], head).oid
        pull = {"pullRequestUrl": f"{place}/discussions/{number}"} if create_pr else {}
        return {"success": True, "commitOid": oid, "commitUrl": f"{place}/commit/{oid}", **pull}

    @route("POST", "/api/models/<repo:repo_id>/tag/<rev>")
    def _tag(self, request: Request, repo_id: str, rev: str) -> Any:
        repo, tag = self._repo(request, repo_id, write=True), request.json["tag"]
        if tag in repo.tags:
            refuse(409, "Tag reference exists already")
        repo.tags[tag] = repo.at(rev).oid
        return {}

    @route("GET", "/api/models/<repo:repo_id>")
    @route("GET", "/api/models/<repo:repo_id>/revision/<path:rev>")
    def _info(self, request: Request, repo_id: str, rev: str = "main") -> Any:
        repo = self._repo(request, repo_id)
        commit, name = repo.at(rev), repo_id.removeprefix("spaces/")
        listed = [described(*file) for file in commit.files.items()]
        return {"id": name, "sha": commit.oid, "private": repo.private, "siblings": listed}

    @route("GET", "/api/models/<repo:repo_id>/tree/<rev>")
    def _tree(self, request: Request, repo_id: str, rev: str) -> Any:
        return [described(*file) for file in self._repo(request, repo_id).at(rev).files.items()]

    @route("GET", "/api/models/<repo:repo_id>/refs")
    def _refs(self, request: Request, repo_id: str) -> Any:
        tags = self._repo(request, repo_id).tags.items()
        listed = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in tags]
        return {"branches": [], "tags": listed, "converts": []}

    @route("GET", "/<repo:repo_id>/resolve/<rev>/<path:path>")
    def _resolve(self, request: Request, repo_id: str, rev: str, path: str) -> Any:
        repo = self._repo(request, repo_id)
        if repo.gated and request.token != TOKEN:
            refuse(403 if request.token else 401, f"Access to model {repo_id} is restricted", "GatedRepo")
        commit = repo.at(rev)
        if path not in commit.files:
            refuse(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        if path.endswith(LFS_SUFFIXES):  # on another host, as of the Hub: a token that leaks there is seen
            url = self.url.replace("127.0.0.1", "localhost") + f"/cdn/{repo_id}/{commit.oid}/{path}"
            linked = {"X-Linked-Size": len(content), "X-Linked-ETag": f'"{checksum(path, content)}"'}
            response = Response(status=302, headers={"Location": url, **linked})
        else:
            response = self._content(request, repo_id, rev, path)
        response.headers["X-Repo-Commit"] = commit.oid
        return response

    @route("GET", "/cdn/<repo:repo_id>/<rev>/<path:path>")
    def _content(self, request: Request, repo_id: str, rev: str, path: str) -> Any:
        """Open to whoever has the link, as signed links are."""
        content = bytearray(self.repos[repo_id].at(rev).files[path])
        response = Response()
        response.set_etag(checksum(path, bytes(content)))
        if (repo_id, path) in self.corrupted:
            content[len(content) // 2] ^= 1
        response.set_data(bytes(content))
        return response.make_conditional(request, accept_ranges=True, complete_length=len(content))

"""A Hugging Face Hub on loopback, for the real client, with faults on demand.

    with HubServer(tokens={"hf_test"}) as hub:
        hub.add_repo("org/name", files={"config.json": b"{}"})
        subprocess.run([...], env=hub.environment(home, token="hf_test"))

Large files are redirected to another host name, as the Hub does, so a token that leaks to the CDN is seen.
"""

import re
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import environ
from pathlib import Path

import pytest
from hub_protocol import Answer, HubProtocol, Request, as_json
from hub_repositories import LFS_SUFFIXES, Blob, HubError, Repository

CLIENT_WARNING = "ignore:Use 'content=:DeprecationWarning"
FOREIGN = re.compile("HF_|HUGGING|.*_PROXY$", re.IGNORECASE)  # variables that lead the client elsewhere


class HubServer(HubProtocol):
    """An endpoint that raises something unforeseen answers 500, and leaving the `with` block raises it again."""

    def __init__(self, tokens: Iterable[str] = (), strangers: Iterable[str] = (), user: str = "tester") -> None:
        super().__init__(tokens, strangers, user)
        self.requests: list[Request] = []
        self._faults: list[tuple[str, int | None]] = []  # None: drop
        self._errors: list[Exception] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.cdn_url = f"http://localhost:{self._http.server_port}/cdn"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):  # those that the client keeps alive
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._errors and kind is None:
            raise self._errors[0]

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repository:
        """A repository whose second commit has these files (the first is the Hub's own, with .gitattributes)."""
        repo = self.repos[repo_id] = Repository(repo_id, private, gated)
        if files:
            repo.commit({path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()})
        return repo

    def fail(self, request: str, times: int = 1, status: int = 503) -> None:
        """Answer the next requests whose "METHOD /path?query" this expression finds with a status, unserved."""
        self._faults += [(request, status)] * times

    def drop(self, request: str, times: int = 1) -> None:
        """Serve the next such requests, but send half of the body only. Answers without a body do not count."""
        self._faults += [(request, None)] * times

    def corrupt(self, repo_id: str, path: str) -> None:
        """From now on one byte of this file arrives flipped; sizes and checksums in the metadata stay true."""
        self.corrupted.add((repo_id, path))

    def relent(self) -> None:
        """No more faults from now on."""
        self._faults.clear()
        self.corrupted.clear()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """For a subprocess: this Hub, an empty cache, and no token but the given one."""
        kept = {key: value for key, value in environ.items() if not FOREIGN.match(key)}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | ({"HF_TOKEN": token} if token else {})

    def adopt(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> None:
        """For this process: the same as `environment`, for a client that has been imported already.

        Call `huggingface_hub.close_session()` in the end.
        """
        for key in filter(FOREIGN.match, list(environ)):
            monkeypatch.delenv(key)
        for key, value in self.environment(home, token).items():
            monkeypatch.setenv(key, value)
        settings = {
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings |= {"ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        for name, setting in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", setting)
        behind_the_functions = "huggingface_hub.hf_api.api"
        monkeypatch.setattr(f"{behind_the_functions}.endpoint", self.url)

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            try:
                if fault := self._fault(request, dropping=False):
                    raise HubError(fault[1] or 503, "", "Fault injected")
                answer = self.serve(request)
            except HubError as error:
                answer = as_json({"error": error.message}, error.status)
                answer.headers |= error.headers
            except Exception as error:
                self._errors.append(error)
                answer = as_json({"error": repr(error)}, 500)
            if answer.body and request.method != "HEAD":
                answer.cut = self._fault(request, dropping=True) is not None
            request.status = answer.status
        return answer

    def _fault(self, request: Request, dropping: bool) -> tuple[str, int | None] | None:
        for fault in self._faults:
            if (fault[1] is None) == dropping and re.search(fault[0], f"{request.method} {request.path}"):
                self._faults.remove(fault)
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub._connections.add(self.connection)

    def finish(self) -> None:
        self.hub._connections.discard(self.connection)
        super().finish()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.hub.answer(Request(self.command, self.path, headers, body))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
        self.close_connection |= answer.cut

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `HubServer.requests` is the log."""

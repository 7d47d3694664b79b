"""A server on this machine that speaks the part of the hub's protocol that uploads and downloads use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and JSON or bytes."""


class Hub:
    """Repositories of models, with the files of their commits.

    Attributes
    ----------
    repositories : dict of str to dict
        By name: `private`, and `files`, the bytes of each file by its name, in the newest commit.
    commits : dict of str to dict
        By name: the files of each commit, the newest commit last.
    requests : list of (str, str, str)
        Method, path and token of each request.
    refusals : dict of str to (int, dict, object)
        Status, headers and JSON that answer each request whose path begins so.
    silent : set of str
        A request whose path begins so has no answer.
    tokens : set of str
        Those that are accepted.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.commits: dict[str, dict[str, Mapping[str, bytes]]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refusals: dict[str, Answer] = {}
        self.silent: set[str] = set()
        self.tokens = {"hf_good"}
        self.ignored: set[str] = set()
        self.closing = threading.Event()
        self._objects: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        port = self._server.server_address[1]
        # Large files lie on another host, as those of the hub do: the client must not send its token there.
        self.address, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def publish(self, name: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Add a commit with these files to a repository, and return its hash."""
        self.repositories[name] = {"private": private, "files": dict(files)}
        of_name = self.commits.setdefault(name, {})
        commit = hashlib.sha1(f"{name} {len(of_name)}".encode(), usedforsecurity=False).hexdigest()
        of_name[commit] = dict(files)
        return commit

    # Each answers with a status and JSON.

    def info(self, name: str) -> tuple[int, Any]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        repository = self.repositories[name]
        siblings = [{"rfilename": each} for each in repository["files"]]
        return 200, {"id": name, "private": repository["private"], "sha": "0" * 40, "siblings": siblings, "tags": []}

    def create(self, body: bytes) -> tuple[int, Any]:
        given = json.loads(body)
        name = f"{given['organization']}/{given['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo"}
        self.repositories[name] = {"private": given["visibility"] == "private", "files": {}}
        return 200, {"url": f"{self.address}/{name}"}

    def preupload(self, body: bytes) -> tuple[int, Any]:
        files = []
        for each in json.loads(body)["files"]:
            mode = "lfs" if each["path"].endswith(".onnx") else "regular"
            ignored = each["path"] in self.ignored
            files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": None})
        return 200, {"files": files}

    def batch(self, body: bytes) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.address}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def receive(self, oid: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "other bytes"}
        self._objects[oid] = body
        return 200, {}

    def commit(self, name: str, body: bytes) -> tuple[int, Any]:
        files = self.repositories[name]["files"]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self._objects[value["oid"]]
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40}

    # Each answers with a status, headers, and JSON or bytes.

    def resolve(self, name: str, revision: str, file: str, token: str) -> Answer:
        """Answer a request for a file: small ones with their bytes, others with the address of their storage."""
        if token and token not in self.tokens:
            return _refusal(401, "", "Invalid credentials in Authorization header")
        if name not in self.commits or (self.repositories[name]["private"] and not token):
            return _refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        commits = self.commits[name]
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in commits[commit]:
            status, headers, content = _refusal(404, "EntryNotFound", "Entry not found")
            return status, {**headers, "X-Repo-Commit": commit}, content
        data = commits[commit][file]
        if file.endswith(".json"):
            etag = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, data
        sha256 = hashlib.sha256(data).hexdigest()
        self._objects[sha256] = data
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        return 302, {"X-Repo-Commit": commit, "Location": f"{self.storage}/lfs/{sha256}", **linked}, b""

    def stored(self, sha256: str) -> Answer:
        return 200, {"ETag": f'"{sha256}"'}, self._objects[sha256]


def _refusal(status: int, code: str, message: str) -> Answer:
    return status, {**({"X-Error-Code": code} if code else {}), "X-Error-Message": message}, {"error": message}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        body = self._body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append((self.command, path, token))
        if path.startswith(tuple(hub.silent)):
            self.close_connection = True
            hub.closing.wait(60)
            return
        status, headers, content = self._content(path, body, token)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {**headers, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _content(self, path: str, body: bytes, token: str) -> Answer:
        hub, parts = self.hub, path.strip("/").split("/")
        for start, refusal in hub.refusals.items():
            if path.startswith(start):
                return refusal
        if parts[2:3] == ["resolve"]:
            return hub.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), token)
        if parts[0] == "lfs":  # its address is the permission
            if self.command == "GET":
                return hub.stored(parts[1])
            status, content = hub.receive(parts[1], body)
        elif token not in hub.tokens:
            return _refusal(401, "", "Invalid credentials in Authorization header")
        else:
            status, content = self._route(path)(body)
        return status, {"X-Error-Code": "RepoNotFound"} if status == 404 else {}, content

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _route(self, path: str) -> Callable[[bytes], tuple[int, Any]]:
        hub, parts = self.hub, path.strip("/").split("/")
        if path == "/api/repos/create":
            return hub.create
        if path == "/api/validate-yaml":
            return lambda _: (200, {"warnings": [], "errors": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return hub.batch
        name = "/".join(parts[2:4])
        if "/preupload/" in path:
            return hub.preupload
        if "/commit/" in path:
            return lambda body: hub.commit(name, body)
        return lambda _: hub.info(name)

    do_HEAD = do_GET = do_POST = do_PUT = _answer  # noqa: N815  the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def served(monkeypatch: pytest.MonkeyPatch, cache: Path | None = None) -> Iterator[Hub]:
    """Yield a hub that the client of this process uses; without a cache, the user's."""
    from huggingface_hub import constants

    server = Hub()
    use(monkeypatch, server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server stores files by git-LFS's protocol
    if cache is not None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    yield server
    server.close()


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the client of this process use the hub at an address, as HF_ENDPOINT does at its import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)

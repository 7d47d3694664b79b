"""A server on this machine that speaks the part of the hub's protocol that uploads use, and keeps what it receives."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Repositories of models, with the files of their newest commit.

    Attributes
    ----------
    repositories : dict of str to dict
        By name: `private`, and `files`, the bytes of each file by its name.
    requests : list of (str, str, str)
        Method, path and token of each request.
    refusals : dict of str to (int, dict, object)
        Status, headers and JSON that answer each request whose path begins so.
    tokens : set of str
        Those that are accepted.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refusals: dict[str, tuple[int, dict[str, str], Any]] = {}
        self.tokens = {"hf_good"}
        self.ignored: set[str] = set()
        self._objects: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

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


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        body = self._body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append((self.command, path, token))
        headers: dict[str, str] = {}
        for start, refusal in hub.refusals.items():
            if path.startswith(start):
                status, headers, content = refusal
                break
        else:
            is_stored = path.startswith("/lfs/")  # its address is the permission
            if not is_stored and token not in hub.tokens:
                message = "Invalid credentials in Authorization header"
                status, headers, content = 401, {"X-Error-Message": message}, {"error": message}
            else:
                status, content = self._route(path)(body)
                if status == 404:
                    headers = {"X-Error-Code": "RepoNotFound"}
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

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
        if parts[0] == "lfs":
            return lambda body: hub.receive(parts[1], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return hub.batch
        name = "/".join(parts[2:4])
        if "/preupload/" in path:
            return hub.preupload
        if "/commit/" in path:
            return lambda body: hub.commit(name, body)
        return lambda _: hub.info(name)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815  the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Print nothing."""

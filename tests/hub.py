"""A stand-in for the Hugging Face Hub: what huggingface_hub asks of it to make, fill, list and read a repository.

Files come in through Git LFS and in the body of a commit, as the hub takes them from a library without Xet; what was
committed is kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves on a port of this machine; `TOKEN` may write into repositories of `owner`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuses: dict[str, int] = {}
        """What to answer to requests whose path matches."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: object, token: str | None = TOKEN) -> dict[str, str]:
        """Variables with which huggingface_hub asks this hub, and keeps what it gets under `home`."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return variables | ({} if token is None else {"HF_TOKEN": token})


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self._begin()
        if body is None:
            return
        if not self._authorised():
            self._json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            right = json.loads(body)["content"].startswith("---\n")
            self._json({"errors": [] if right else [{"message": "no metadata"}], "warnings": []}, 200 if right else 400)
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": each["path"], "uploadMode": self._mode(each["path"]), "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files} if match[1] in self.server.repositories else {"error": "none"}, 200)
        elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            self._json({"transfer": "basic", "objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"not served: {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self._begin()
        if body is not None:
            oid = self.path.removeprefix("/objects/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.objects[oid] = body
            self._bytes(b"", {})

    def do_GET(self) -> None:
        if self._begin() is None:
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", self.path):
            self._if_readable(match[1], lambda there: self._json({"id": match[1], "sha": there.sha, "siblings": []}))
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            self._if_readable(match[1], lambda there: self._json([_entry(*each) for each in there.files.items()]))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            self._if_readable(match[1], lambda there: self._file(there, match[2]))
        else:
            self._json({"error": f"not served: {self.path}"}, 404)

    do_HEAD = do_GET

    def _begin(self) -> bytes | None:
        """Take note of a request; its body, or None if it has been refused."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        for pattern, status in self.server.refuses.items():
            if re.search(pattern, self.path):
                self._json({"error": "You may not."}, status)
                return None
        return body

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            self._json({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repositories[name] = Repository(asked.get("visibility") == "private")
        self._json({"url": f"{self.server.url}/{name}"})

    def _mode(self, path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.url}/objects/{asked['oid']}"
        return {**asked, "authenticated": True, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        there = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                there.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there.files[value["path"]] = self.server.objects[value["oid"]]
        there.commits += 1
        address = f"{self.server.url}/{name}/commit/{there.sha}"
        self._json({"success": True, "commitOid": there.sha, "commitUrl": address})

    def _if_readable(self, name: str, answer: Any) -> None:
        there = self.server.repositories.get(name)
        if there is None or (there.private and not self._authorised()):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        else:
            answer(there)

    def _file(self, there: Repository, path: str) -> None:
        if path not in there.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        tag = hashlib.sha256(there.files[path]).hexdigest()
        self._bytes(there.files[path], {"ETag": f'"{tag}"', "X-Repo-Commit": there.sha})

    def _json(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(values).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def _bytes(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(".safetensors"):
        pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry["lfs"] = pointer
    return entry

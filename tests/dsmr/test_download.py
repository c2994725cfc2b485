"""The download: whole, resumed, broken off, corrupt; against a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dsmr.corpus import download
from dsmr.corpus.download import download_maestro

CONTENT = bytes(range(256)) * 4096  # 1 MiB, four blocks
NAME = "maestro.zip"


@dataclass
class Server:
    """What the server does, and the ranges it was asked for."""

    url: str = ""
    breaks_after: int | None = None
    knows_ranges: bool = True
    status: int | None = None
    states_length: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    settings = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            settings.asked.append(asked)
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and settings.knows_ranges else 0
            if settings.status is not None or begin >= len(CONTENT):
                self.send_error(settings.status or 416)
                return
            self.send_response(206 if begin else 200)
            if settings.states_length:
                self.send_header("Content-Length", str(len(CONTENT) - begin))
            self.end_headers()
            self.wfile.write(CONTENT[begin : settings.breaks_after])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        settings.url = f"http://127.0.0.1:{http.server_port}/v3/{NAME}"
        monkeypatch.setattr(download, "MAESTRO_URL", settings.url)
        monkeypatch.setattr(download, "MAESTRO_SHA256", hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield settings
        http.shutdown()
        thread.join()


def test_whole_file_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = download_maestro(tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / NAME
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_broken_download_resumes(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 300_000
    with pytest.raises(OSError, match=r"ended after 300000 of 1048576 bytes; try again, it resumes"):
        download_maestro(tmp_path)
    server.breaks_after = None
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.knows_ranges = False
    assert download_maestro(tmp_path).read_bytes() == CONTENT


def test_part_that_is_already_whole_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert download_maestro(tmp_path).read_bytes() == CONTENT


def test_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download_maestro(tmp_path) == tmp_path / NAME
    assert server.asked == []


def test_another_file_that_is_there_is_refused_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"maestro\.zip: expected SHA-256 .*; remove it to download it anew"):
        download_maestro(tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"something else"


def test_corrupt_download_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"wrong beginning")
    with pytest.raises(ValueError, match=r"expected SHA-256 .*; what came was removed, try again"):
        download_maestro(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_server_name_the_url(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(OSError, match=rf"{server.url}: the download failed: HTTP Error 503"):
        download_maestro(tmp_path)


def test_answer_without_a_length_is_refused(server: Server, tmp_path: Path) -> None:
    server.states_length = False
    with pytest.raises(OSError, match="does not say how long the file is"):
        download_maestro(tmp_path)

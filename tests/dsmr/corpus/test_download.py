"""The download: whole, resumed, broken off, corrupt; against a server on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsmr.claim import SaveError
from dsmr.corpus import download
from dsmr.corpus.download import download_maestro
from tests.full_disk import files_of_at_most

CONTENT = bytes(range(256)) * 4096  # 1 MiB, four blocks
NAME = "maestro.zip"
REAL_URL = download.MAESTRO_URL


@dataclass
class Answer:
    """One answer of the server; by default what was asked for."""

    status: int | None = None
    content: bytes = CONTENT
    breaks_after: int | None = None  # bytes
    stalls: bool = False  # after that, instead of closing the connection
    knows_ranges: bool = True
    begins_late: int = 0  # bytes
    length: str | None = ""  # what is stated; "" for what is true


@dataclass
class Server:
    """What the server answers, one after the other and then the last one for ever; and what it was asked for."""

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    asked: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    settings = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = settings.answers.pop(0) if len(settings.answers) > 1 else settings.answers[0]
            asked = self.headers["Range"]
            settings.asked.append(asked)
            settings.paths.append(self.path)
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and answer.knows_ranges else 0
            if answer.status is not None or begin >= len(answer.content):
                self.send_error(answer.status or 416)
                return
            self.send_response(206 if begin else 200)
            if begin:
                last = len(answer.content) - 1
                self.send_header("Content-Range", f"bytes {begin + answer.begins_late}-{last}/{last + 1}")
            if answer.length is not None:
                self.send_header("Content-Length", answer.length or str(len(answer.content) - begin))
            self.end_headers()
            with suppress(ConnectionError):  # a client that has seen enough closes the connection
                self.wfile.write(answer.content[begin:][: answer.breaks_after])
            if answer.stalls:
                settings.over.wait()

        def do_CONNECT(self) -> None:
            settings.paths.append(f"CONNECT {self.path}")
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        settings.url = f"http://127.0.0.1:{http.server_port}/v3/{NAME}"
        monkeypatch.setattr(download, "MAESTRO_URL", settings.url)
        monkeypatch.setattr(download, "MAESTRO_SHA256", hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setattr(download, "_WAITS", (0.0, 0.0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield settings
        settings.over.set()
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


def test_broken_download_resumes_by_itself(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(breaks_after=300_000)]
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_download_that_stands_still_resumes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.3)
    server.answers = [Answer(breaks_after=300_000, stalls=True), Answer()]
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    begin = server.asked[-1]
    assert begin is not None
    assert 0 < int(begin.removeprefix("bytes=").removesuffix("-")) <= 300_000


def test_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=500), Answer(breaks_after=9), Answer(status=503), Answer(status=429), Answer()]
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None, "bytes=9-", "bytes=9-", "bytes=9-"]


def test_server_that_sends_nothing_more_is_given_up_and_resumed_later(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(breaks_after=300_000), Answer(breaks_after=0)]
    with pytest.raises(OSError, match=r"ended after 300000 of 1048576 bytes; try again, it resumes"):
        download_maestro(tmp_path)
    assert server.asked == [None, *["bytes=300000-"] * 3]
    server.answers = [Answer()]
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=300000-"


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.answers = [Answer(knows_ranges=False)]
    assert download_maestro(tmp_path).read_bytes() == CONTENT


def test_server_without_ranges_that_always_breaks_off_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(knows_ranges=False, breaks_after=300_000)]
    with pytest.raises(OSError, match=r"ended after 300000 of 1048576 bytes"):
        download_maestro(tmp_path)
    assert len(server.asked) == 4  # the first brought something


def test_another_range_than_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.answers = [Answer(begins_late=5)]
    with pytest.raises(OSError, match=r"asked for bytes from 1000 on and sent bytes 1005-1048575/1048576"):
        download_maestro(tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]


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


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        pytest.param(b"wrong beginning", Answer(), id="wrong-beginning"),
        pytest.param(b"", Answer(content=CONTENT[::-1]), id="wrong-content"),
        pytest.param(b"", Answer(length="1000"), id="stated-too-short"),
        pytest.param(CONTENT + b"and more", Answer(), id="part-too-long"),
    ],
)
def test_corrupt_download_is_removed(server: Server, tmp_path: Path, part: bytes, answer: Answer) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    server.answers = [answer]
    with pytest.raises(ValueError, match=r"expected SHA-256 .*; what came was removed, try again"):
        download_maestro(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_length_stated_too_long_is_no_whole_file(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(length="1048577"), Answer(status=404)]
    with pytest.raises(OSError, match="HTTP Error 404"):
        download_maestro(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{NAME}.part"]


def test_errors_of_the_server_name_the_url(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=404)]
    with pytest.raises(OSError, match=rf"{server.url}: the download failed: HTTP Error 404"):
        download_maestro(tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("length", [None, "many"])
def test_answer_without_a_length_is_refused(server: Server, tmp_path: Path, length: str | None) -> None:
    server.answers = [Answer(length=length)]
    with pytest.raises(OSError, match="does not say how long the file is"):
        download_maestro(tmp_path)


def test_full_disk_is_noticed_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match=r"expected room for 1047576 bytes, got 1000000; try again, it resumes"):
        download_maestro(tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]
    assert len(server.asked) == 1


def test_proxy_of_the_environment_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAESTRO_URL", f"http://no-such-host.invalid/v3/{NAME}")
    monkeypatch.setenv("http_proxy", server.url.removesuffix(f"/v3/{NAME}"))
    assert download_maestro(tmp_path).read_bytes() == CONTENT
    assert server.paths == [f"http://no-such-host.invalid/v3/{NAME}"]


def test_proxy_is_asked_for_the_real_address(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAESTRO_URL", REAL_URL)
    monkeypatch.setenv("https_proxy", server.url.removesuffix(f"/v3/{NAME}"))
    with pytest.raises(OSError, match=r"Tunnel connection failed: 403"):
        download_maestro(tmp_path)
    assert set(server.paths) == {"CONNECT storage.googleapis.com:443"}


def test_a_full_disk_is_no_failure_of_the_server(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    refused = pytest.raises(SaveError, match=rf"^{re.escape(str(part))}: cannot be written: File too large")
    with files_of_at_most(300_000), refused:
        download_maestro(tmp_path)
    kept = part.read_bytes()
    assert kept == CONTENT[: len(kept)]
    download_maestro(tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT

"""Download of the MAESTRO dataset's MIDI files, resuming where an earlier attempt broke off.

The code is our own because `torch.hub.download_url_to_file` and pooch verify a checksum but begin anew whenever a
transfer breaks off. huggingface_hub resumes, but only files of its hub; its function for any address is not documented.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from dsmr.claim import SaveError, saving
from dsmr.progress import Progress

MAESTRO_URL = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0-midi.zip"
MAESTRO_SHA256 = "70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c"

_BLOCK = 1 << 18
_TIMEOUT_SECONDS = 30.0  # without a single byte
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before another attempt, after so many that brought nothing
_BUSY = (408, 429, 500, 502, 503, 504)  # HTTP: what may go away by itself
_NOTHING_LEFT = 416  # HTTP: the range asked for begins at or beyond the end
_PASSING = (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException)


def download_maestro(folder: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Download MAESTRO v3.0.0, MIDI only (58 MB), and return the path of the zip file.

    The dataset is published under CC BY-NC-SA 4.0. What arrives is kept in a ``.part`` file until it is whole and its
    checksum is right; a file that is already there is checked and not fetched again. A transfer that breaks off is
    resumed, until five attempts in a row have brought nothing. Proxies are those that the environment names
    (``https_proxy``, ``no_proxy``).

    Args:
        folder: where to put the file; made if missing.
        progress: called with the bytes that have arrived and the bytes of the whole file.

    Raises:
        SaveError: the folder or the file cannot be written; what has come is kept.
        OSError: the server cannot be reached or keeps breaking off, or the disk is too full; calling again resumes.
        ValueError: the file that is there, or that came, has another checksum.
    """
    path = Path(folder) / MAESTRO_URL.rpartition("/")[2]
    if path.exists():
        if (got := _sha256(path)) != MAESTRO_SHA256:
            raise ValueError(f"{path}: expected SHA-256 {MAESTRO_SHA256}, got {got}; remove it to download it anew")
        return path
    with saving(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch_patiently(part, progress)
    except SaveError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{MAESTRO_URL}: the download failed: {error}; try again, it resumes") from error
    if (got := _sha256(part)) != MAESTRO_SHA256:
        part.unlink()  # a wrong beginning cannot be resumed
        raise ValueError(
            f"{MAESTRO_URL}: expected SHA-256 {MAESTRO_SHA256}, got {got}; what came was removed, try again"
        )
    with saving(path):
        os.replace(part, path)
    return path


def _fetch_patiently(part: Path, progress: Progress | None) -> None:
    """Fetch until the file is whole, or nothing more comes."""
    most = _size(part)
    in_vain = 0
    while True:
        try:
            return _fetch(part, progress)
        except _PASSING as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _BUSY:
                raise
            in_vain = 0 if _size(part) > most else in_vain + 1
            if in_vain > len(_WAITS):
                raise
            most = max(most, _size(part))
            time.sleep(_WAITS[max(in_vain - 1, 0)])


def _fetch(part: Path, progress: Progress | None) -> None:
    """Append to a file what the server has beyond it."""
    have = _size(part)
    request = urllib.request.Request(MAESTRO_URL, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener().open(request, timeout=_TIMEOUT_SECONDS)  # with the proxies of now
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == _NOTHING_LEFT:
            return
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # a server that knows no ranges sends everything
        elif not (got := response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            raise ConnectionError(f"the server was asked for bytes from {have} on and sent {got or 'others'}")
        if (length := response.headers["Content-Length"]) is None or not length.isdecimal():
            raise ConnectionError("the server does not say how long the file is")
        total = have + int(length)
        if (free := shutil.disk_usage(part.parent).free) < int(length):
            raise OSError(f"{part.parent}: expected room for {int(length)} bytes, got {free}")
        if not have:
            with saving(part):
                part.write_bytes(b"")
        while block := response.read(_BLOCK):
            with saving(part), open(part, "ab") as file:
                file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
    if have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

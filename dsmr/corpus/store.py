"""Token store: a whole corpus in one memory-mapped file.

Layout, little-endian: 8 bytes magic, uint32 version, uint32 length of the header, the header (JSON, UTF-8), zeros up to
a multiple of 64 bytes, then every token as uint16, piece after piece, each from BEGIN to END. The header holds the
codec, the number of tokens, their SHA-256 and the piece table. Equal content makes equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsmr.files import replaced
from dsmr.music.tokens import BEGIN, CODEC, END, PAD, Ids, duration_seconds, token_name

MAGIC = b"DSMRTOKS"
VERSION = 1
SPLITS = ("train", "validation", "test")
ReturnKind = Literal["exact", "transposed"]

_Type = TypeVar("_Type")
_PREFIX = struct.Struct("<8sII")
_ALIGNMENT = 64
_TOKEN_DTYPE = np.dtype("<u2")
_REBUILD = "rebuild it with `dsmr prepare maestro`, `dsmr prepare folder` or `dsmr prepare pianist`"


class StoreError(ValueError):
    """A file that is no token store, or not one that this version can read, or a damaged one."""


@dataclass(frozen=True)
class Return:
    """A passage that comes back: tokens ``start:stop`` of a piece restate its tokens ``source_start:source_stop``.

    Offsets count from the piece's BEGIN, at 0. A passage runs from its first note-on to just after its last one.
    ``semitones`` is how far it was transposed, 0 for an exact return. Timing and dynamics may differ: a return is
    played anew.
    """

    kind: ReturnKind
    semitones: int
    start: int
    stop: int
    source_start: int
    source_stop: int


@dataclass(frozen=True)
class Piece:
    """One row of the piece table: where the piece's tokens lie in the store, and what it is.

    ``start`` and ``length`` are in tokens, BEGIN and END counted; ``duration`` is in seconds; ``source`` is the file
    that the piece was read from, or how it was made.
    """

    start: int
    length: int
    split: str
    title: str
    composer: str
    source: str
    duration: float
    returns: tuple[Return, ...] = ()


class StoreWriter:
    """Collect pieces and write them as one store when the ``with`` block ends without an error.

    The file appears whole or not at all: it is written beside its place and then moved there, so an error or a full
    disk leaves an older store at ``path`` as it was. Tokens wait in memory, two bytes each.

    Args:
        path: the file to write; its folder is made if missing.

    Raises:
        ValueError: the block ends and no piece was added.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._tokens: list[Ids] = []
        self._pieces: list[Piece] = []
        self._length = 0

    def add(
        self,
        ids: ArrayLike,
        *,
        split: str,
        title: str,
        composer: str = "",
        source: str = "",
        returns: Sequence[Return] = (),
    ) -> Piece:
        """Append a piece and return its row of the table.

        Args:
            ids: integers [L], beginning with BEGIN and ending with END, with neither of them nor PAD between.
            split: "train", "validation" or "test".
            title, composer, source: what the piece is and where it comes from.
            returns: labelled repeats inside the piece.

        Raises:
            TypeError, ValueError: ids that are no such sequence, an unknown split, or a return that leaves the piece.
        """
        _check_split(split)
        duration = duration_seconds(ids)
        tokens = np.asarray(ids).astype(_TOKEN_DTYPE)
        _check_framing(tokens)
        for each in returns:
            _check_return(each, len(tokens))
        piece = Piece(self._length, len(tokens), split, title, composer, source, duration, tuple(returns))
        self._tokens.append(tokens)
        self._pieces.append(piece)
        self._length += len(tokens)
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()

    def _write(self) -> None:
        if not self._pieces:
            raise ValueError(f"{self.path}: expected at least one piece to store, got none")
        digest = hashlib.sha256()
        for tokens in self._tokens:
            digest.update(tokens.tobytes())
        header = json.dumps(
            {
                "codec": CODEC,
                "tokens": self._length,
                "sha256": digest.hexdigest(),
                "pieces": [asdict(piece) for piece in self._pieces],
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        with replaced(self.path) as partial, open(partial, "wb") as file:
            file.write(_PREFIX.pack(MAGIC, VERSION, len(header)))
            file.write(header)
            file.write(bytes(_tokens_offset(len(header)) - _PREFIX.size - len(header)))
            for tokens in self._tokens:
                file.write(tokens.tobytes())


@dataclass(frozen=True, eq=False)
class TokenStore:
    """A store opened for reading; make one with :meth:`open`.

    ``tokens`` is the whole corpus, uint16, read-only and mapped from the file rather than read into memory; ``digest``
    is the SHA-256 of those tokens as the file states it (:meth:`verify` compares).
    """

    path: Path
    codec: str
    digest: str
    pieces: tuple[Piece, ...]
    tokens: np.memmap[Any, np.dtype[np.uint16]]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenStore:
        """Map a store after checking its magic, version, codec and sizes; the tokens themselves are not read.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the file is not a token store, was written by another version or codec, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such token store; build one with `dsmr prepare`")
        size = path.stat().st_size
        header, offset = _read_header(path, size)
        if (codec := header.get("codec")) != CODEC:
            raise StoreError(f"{path}: expected tokens of codec {CODEC!r}, got {codec!r}; {_REBUILD}")
        try:
            count, digest = _typed(header["tokens"], int), _typed(header["sha256"], str)
            pieces = tuple(_piece_from_json(row) for row in header["pieces"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: expected a complete piece table, got {error!r}; {_REBUILD}") from error
        if size != (expected := offset + count * _TOKEN_DTYPE.itemsize):
            raise StoreError(f"{path}: expected {expected} bytes for {count} tokens, got {size}; {_REBUILD}")
        start = 0
        for piece in pieces:
            if piece.start != start or piece.length < 2 or piece.split not in SPLITS:
                raise StoreError(f"{path}: expected a piece of a known split at token {start}, got {piece}; {_REBUILD}")
            start += piece.length
        if start != count or count == 0:
            raise StoreError(f"{path}: expected pieces that fill {count} tokens, got {start}; {_REBUILD}")
        tokens = np.memmap(path, dtype=_TOKEN_DTYPE, mode="r", offset=offset, shape=(count,))
        return cls(path, codec, digest, pieces, tokens)

    def piece(self, index: int) -> NDArray[np.uint16]:
        """Return the tokens of piece ``index``, BEGIN and END included: a read-only view, uint16 [length]."""
        piece = self.pieces[index]
        return self.tokens[piece.start : piece.start + piece.length]

    def indices(self, split: str) -> list[int]:
        """Return the indices of the pieces of a split, in table order.

        Raises:
            ValueError: an unknown split.
        """
        _check_split(split)
        return [index for index, piece in enumerate(self.pieces) if piece.split == split]

    def verify(self) -> None:
        """Read every token: compare with the checksum in the header, then see that each piece is one.

        The commands do so whenever they open a store: at 400 MB/s and more that takes a moment, and a training on
        damaged music takes days.

        Raises:
            StoreError: the checksum differs, or a piece does not run from BEGIN to END with only events between.
        """
        digest = hashlib.sha256()
        for index in range(len(self.pieces)):
            digest.update(self.piece(index).tobytes())
        if (got := digest.hexdigest()) != self.digest:
            raise StoreError(f"{self.path}: expected tokens of SHA-256 {self.digest}, got {got}; {_REBUILD}")
        for index in range(len(self.pieces)):
            try:
                _check_framing(self.piece(index))
            except ValueError as error:
                raise StoreError(f"{self.path}: piece {index}: {error}; {_REBUILD}") from error


def _tokens_offset(header_length: int) -> int:
    end = _PREFIX.size + header_length
    return end + -end % _ALIGNMENT


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header, and the byte where the tokens begin."""
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            got = prefix[: len(MAGIC)]
            raise StoreError(f"{path}: expected a token store, beginning with {MAGIC!r}, got {got!r}; {_REBUILD}")
        if len(prefix) < _PREFIX.size:
            raise StoreError(f"{path}: expected at least {_PREFIX.size} bytes, got {size}; {_REBUILD}")
        _, version, header_length = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise StoreError(f"{path}: expected version {VERSION} of the file format, got {version}; {_REBUILD}")
        offset = _tokens_offset(header_length)
        if size < offset:
            raise StoreError(f"{path}: expected at least {offset} bytes of header, got {size}; {_REBUILD}")
        raw = file.read(header_length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: expected a JSON header, got {error}; {_REBUILD}") from error
    if not isinstance(header, dict):
        raise StoreError(f"{path}: expected a JSON object as header, got {type(header).__name__}; {_REBUILD}")
    return header, offset


def _piece_from_json(row: dict[str, Any]) -> Piece:
    piece = Piece(**{**row, "returns": tuple(Return(**each) for each in row["returns"])})
    for text in (piece.split, piece.title, piece.composer, piece.source):
        _typed(text, str)
    for number in (piece.start, piece.length, *(number for each in piece.returns for number in astuple(each)[1:])):
        _typed(number, int)
    if not 0 <= _typed(piece.duration, float) < math.inf:
        raise ValueError(f"duration: expected seconds, got {piece.duration}")
    for each in piece.returns:
        _check_return(each, piece.length)
    return piece


def _typed(value: Any, kind: type[_Type]) -> _Type:
    if type(value) is not kind:  # not isinstance: True is no number
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")


def _check_framing(tokens: Ids) -> None:
    if len(tokens) < 2 or tokens[0] != BEGIN or tokens[-1] != END:
        ends = " .. ".join(token_name(int(token)) for token in tokens[[0, -1]]) if len(tokens) else "nothing"
        raise ValueError(f"ids: expected BEGIN .. END, got {ends}")
    stray = np.flatnonzero(tokens[1:-1] >= PAD) + 1
    if len(stray):
        name = token_name(int(tokens[stray[0]]))
        raise ValueError(f"ids: expected events between BEGIN and END, got {name} at index {stray[0]}")


def _check_return(each: Return, length: int) -> None:
    if each.kind not in ("exact", "transposed"):
        raise ValueError(f"returns: expected kind 'exact' or 'transposed', got {each.kind!r}")
    passages = ((each.source_start, each.source_stop), (each.start, each.stop))
    if not all(0 <= start < stop <= length for start, stop in passages):
        raise ValueError(f"returns: expected two passages inside the {length} tokens of the piece, got {each}")

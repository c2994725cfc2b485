"""MIDI files from bytes written by hand, after "Standard MIDI Files 1.0" (MIDI Manufacturers Association, 1996)."""

from __future__ import annotations

import struct

TICKS_PER_BEAT = 480
END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x40\x60\x80\x3c\x40"  # middle C for 96 ticks: 0.1 s


def varlen(value: int) -> bytes:
    """A variable-length quantity: seven bits a byte, the highest bit set on all bytes but the last."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.insert(0, 0x80 | value & 0x7F)
    return bytes(groups)


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def header(tracks: int = 1, kind: int = 1, division: int = TICKS_PER_BEAT) -> bytes:
    return chunk(b"MThd", struct.pack(">HHH", kind, tracks, division))


def file(*tracks: bytes, kind: int = 1, division: int = TICKS_PER_BEAT) -> bytes:
    """A file of these tracks' events, each track ended as it should be."""
    return header(len(tracks), kind, division) + b"".join(chunk(b"MTrk", events + END) for events in tracks)


def note(pitch: int = 60, velocity: int = 64, channel: int = 0, length: int = 96, gap: int = 0) -> bytes:
    return varlen(gap) + bytes([0x90 | channel, pitch, velocity]) + varlen(length) + bytes([0x80 | channel, pitch, 0])


def tempo(microseconds_per_beat: int, gap: int = 0) -> bytes:
    return varlen(gap) + b"\xff\x51\x03" + microseconds_per_beat.to_bytes(3, "big")


def text(kind: int, content: bytes) -> bytes:
    return b"\x00\xff" + bytes([kind]) + varlen(len(content)) + content


def pedal(value: int, gap: int = 0, channel: int = 0) -> bytes:
    return varlen(gap) + bytes([0xB0 | channel, 64, value])

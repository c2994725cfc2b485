"""MIDI files that nobody wants to meet, each built by a function of its own from bytes written by hand.

``FILES`` holds what becomes of each: a number is how many notes are read from it, a string is the reason why it is left
out. The format is that of "Standard MIDI Files 1.0" (MIDI Manufacturers Association, 1996).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from dsmr.midi import MAX_BYTES

Outcome = int | str


@dataclass(frozen=True)
class Hostile:
    """A file's builder, and what becomes of the file: notes read, or why it is left out (a regular expression)."""

    build: Callable[[], bytes]
    outcome: Outcome
    large: bool = False  # a megabyte and more


FILES: dict[str, Hostile] = {}
Builder = Callable[[], bytes]

TICKS_PER_BEAT = 480
END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x40\x60\x80\x3c\x40"  # middle C for 96 ticks: 0.1 s


def becomes(outcome: Outcome, large: bool = False) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        FILES[build.__name__] = Hostile(build, outcome, large)
        return build

    return register


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


# --- Cut short, at every kind of byte -------------------------------------------------------------------------------


@becomes("expected a MIDI file")
def no_bytes_at_all() -> bytes:
    return b""


@becomes("expected a MIDI file")
def cut_in_the_first_word() -> bytes:
    return file(NOTE)[:2]


@becomes("expected a MIDI file")
def cut_in_the_header() -> bytes:
    return file(NOTE)[:11]


@becomes("expected a MIDI file")
def cut_after_the_header() -> bytes:
    return file(NOTE)[:14]


@becomes("expected a MIDI file")
def cut_in_the_word_that_begins_a_track() -> bytes:
    return file(NOTE)[:16]


@becomes("expected a MIDI file")
def cut_in_the_length_of_a_track() -> bytes:
    return file(NOTE)[:20]


@becomes("expected a MIDI file")
def cut_in_a_gap() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x81"


@becomes("expected a MIDI file")
def cut_after_a_status() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\x90"


@becomes("expected a MIDI file")
def cut_between_pitch_and_velocity() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\x90\x3c"


@becomes("expected a MIDI file")
def cut_in_a_tempo() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xff\x51\x03\x07"


@becomes("expected a MIDI file")
def cut_in_a_text() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xff\x03\x10Moon"


@becomes("expected a MIDI file")
def cut_in_a_system_exclusive_message() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xf0\x10\x41\x10"


@becomes("expected a MIDI file")
def cut_before_the_end_of_the_track() -> bytes:
    return file(NOTE)[: -len(END)]


@becomes("expected a MIDI file with the 2 tracks that it announces, got 1")
def second_track_missing() -> bytes:
    return header(2) + chunk(b"MTrk", NOTE + END)


# --- Lengths and counts that lie ------------------------------------------------------------------------------------


@becomes("expected a MIDI file")
def header_of_four_gigabytes() -> bytes:
    return b"MThd\xff\xff\xff\xff" + file(NOTE)[8:]


@becomes("expected a MIDI file")
def header_of_no_bytes() -> bytes:
    return b"MThd\x00\x00\x00\x00" + file(NOTE)[8:]


@becomes(1)
def header_longer_than_today() -> bytes:
    return chunk(b"MThd", file(NOTE)[8:14] + bytes(4)) + chunk(b"MTrk", NOTE + END)


@becomes("expected a MIDI file")
def track_of_four_gigabytes() -> bytes:
    return header() + b"MTrk\xff\xff\xff\xff" + NOTE + END


@becomes("expected a MIDI file, whose tracks have an end, got none")
def track_of_no_bytes() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x00" + NOTE + END


@becomes("expected a MIDI file")
def track_that_ends_inside_an_event() -> bytes:
    return header() + chunk(b"MTrk", NOTE[:6]) + NOTE[6:] + END


@becomes("expected a MIDI file with the 65535 tracks that it announces, got 1")
def tracks_announced_65535() -> bytes:
    return header(65_535) + chunk(b"MTrk", NOTE + END)


@becomes(1)
def no_tracks_announced() -> bytes:
    return header(0) + chunk(b"MTrk", NOTE + END)


@becomes("expected a MIDI file")
def text_of_negative_length() -> bytes:
    return header() + chunk(b"MTrk", b"\x00\xff\x01\xff\xff\xff\xff\x7f" + NOTE + END)


@becomes("expected a MIDI file")
def gap_of_five_bytes() -> bytes:
    return file(b"\x8f\xff\xff\xff\x7f" + NOTE[1:])


@becomes("expected a MIDI file")
def gap_of_sixty_bytes() -> bytes:
    return file(b"\x80" * 60 + NOTE)


@becomes(1)
def unknown_chunks_around_the_track() -> bytes:
    return header() + chunk(b"XFIH", bytes(9)) + chunk(b"MTrk", NOTE + END) + chunk(b"Junk", b"MTrk" * 9)


@becomes("expected a MIDI file")
def chunk_in_lower_case() -> bytes:
    return file(NOTE).replace(b"MTrk", b"mtrk")


@becomes(1)
def rubbish_after_the_last_track() -> bytes:
    return file(NOTE) + b"\xff" * 1000


@becomes(1)
def wrapped_in_riff() -> bytes:
    midi = file(NOTE)
    return b"RIFF" + struct.pack("<I", len(midi) + 12) + b"RMIDdata" + struct.pack("<I", len(midi)) + midi


@becomes(2)
def wrapped_in_riff_behind_other_chunks() -> bytes:
    midi = file(NOTE, NOTE)
    listed = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"  # of odd length, and so padded
    return (
        b"RIFF" + struct.pack("<I", len(midi) + 26) + b"RMID" + listed + b"data" + struct.pack("<I", len(midi)) + midi
    )


@becomes("got a RIFF file without one")
def riff_without_its_end() -> bytes:
    return wrapped_in_riff()[:-1]


@becomes("got a RIFF file without one")
def riff_of_no_chunks() -> bytes:
    return b"RIFF\x04\x00\x00\x00RMID"


@becomes(3)
def more_tracks_than_announced() -> bytes:
    return header(1) + chunk(b"MTrk", NOTE + END) * 3


@becomes("expected a MIDI file, got one that ends inside a chunk")
def track_beyond_those_announced_cut_short() -> bytes:
    return header(1) + chunk(b"MTrk", NOTE + END) + chunk(b"MTrk", NOTE + END)[:-1]


@becomes("expected a MIDI file, whose tracks have an end, got none")
def track_longer_than_its_length_says() -> bytes:
    """The length ends between two notes: the second would be lost."""
    return header() + b"MTrk" + struct.pack(">I", len(NOTE)) + NOTE + NOTE + END


@becomes("expected a MIDI file, got 20 bytes after the end of the track")
def length_of_a_track_that_swallows_the_next() -> bytes:
    track = chunk(b"MTrk", NOTE + END)
    return header(1) + b"MTrk" + struct.pack(">I", len(NOTE + END) + len(track)) + NOTE + END + track


@becomes(1)
def zeros_after_the_end_of_a_track() -> bytes:
    return header() + chunk(b"MTrk", NOTE + END + bytes(3))


@becomes(2)
def tracks_without_end_of_track() -> bytes:
    return header(2) + chunk(b"MTrk", NOTE) * 2


# --- Time -----------------------------------------------------------------------------------------------------------


@becomes("at most 14400 s of music")
def giant_tempo() -> bytes:
    """The slowest there is: 16.8 s a beat."""
    return file(tempo(0xFFFFFF) + note(length=1_000_000))


@becomes("expected at least 1 microsecond a beat, got 0 at tick 0")
def tempo_of_nothing() -> bytes:
    return file(tempo(0) + NOTE)


@becomes(100_000, large=True)
def tempo_change_at_every_note() -> bytes:
    return file(b"".join(tempo(400_000 + i % 1000) + note(length=10) for i in range(100_000)))


@becomes("whose tempos have 3 bytes, got 2")
def tempo_of_two_bytes() -> bytes:
    return file(b"\x00\xff\x51\x02\x07\xa1" + NOTE)


@becomes("at most 14400 s of music")
def gap_of_a_thousand_million_ticks() -> bytes:
    return file(NOTE + b"".join(text(1, b"").replace(b"\x00", varlen(250_000_000), 1) for _ in range(4)) + NOTE)


@becomes(41)
def ticks_beyond_32_bits() -> bytes:
    """Forty gaps of 2^28 - 1 ticks at the fastest tempo: 22 s of music."""
    return file(tempo(1) + NOTE + b"".join(note(gap=2**28 - 1) for _ in range(40)))


@becomes("at most 14400 s of music")
def a_day_of_music() -> bytes:
    return file(b"".join(note(gap=960 * 60 - 96) for _ in range(24 * 60)))


@becomes(2)
def three_hours_of_silence() -> bytes:
    return file(NOTE + note(gap=960 * 3600 * 3))


@becomes(1)
def smpte_time() -> bytes:
    return file(NOTE, division=0xE728)


@becomes("at least one tick a beat")
def smpte_time_without_ticks() -> bytes:
    return file(NOTE, division=0xE700)


@becomes("expected a MIDI file of 24, 25, 29, 30 frames a second, got 60")
def smpte_time_of_sixty_frames() -> bytes:
    return file(NOTE, division=0xC428)


@becomes("at least one tick a beat")
def no_ticks_a_beat() -> bytes:
    return file(NOTE, division=0)


@becomes(1)
def one_tick_a_beat() -> bytes:
    return file(NOTE, division=1)


@becomes("whose tempos have 3 bytes, got 0")
def tempo_without_bytes_at_the_very_end() -> bytes:
    return header() + chunk(b"MTrk", NOTE + b"\x00\xff\x51\x00")


@becomes("a track that ends inside an event")
def gap_without_end_at_the_very_end() -> bytes:
    return header() + chunk(b"MTrk", NOTE + b"\x81")


# --- Notes ----------------------------------------------------------------------------------------------------------


@becomes(3)
def notes_of_no_length() -> bytes:
    return file(note(length=0) * 3)


@becomes("got none")
def note_off_before_its_note_on() -> bytes:
    """A note of negative length."""
    return file(b"\x00\x80\x3c\x40\x60\x90\x3c\x40")


@becomes("got none")
def notes_without_end() -> bytes:
    return file(b"".join(bytes([10, 0x90, pitch, 64]) for pitch in range(128)))


@becomes(3)
def running_status() -> bytes:
    return file(b"\x00\x90" + b"\x3c\x40\x60\x3c\x00\x00" * 3 + b"\x3c\x00")


@becomes("expected a MIDI file")
def running_status_with_nothing_to_run_from() -> bytes:
    return file(b"\x00\x3c\x40\x60\x3c\x00")


@becomes(1)
def running_status_after_a_text() -> bytes:
    return file(NOTE + text(1, b"x") + b"\x00\x3c\x40\x60\x3c\x00")


@becomes(2)
def running_status_after_a_system_exclusive_message() -> bytes:
    """The standard ends it there; files in the wild go on."""
    return file(NOTE + b"\x00\x90\x40\x40" + b"\x05\xf0\x02\x41\xf7" + b"\x60\x40\x00")


@becomes(2)
def running_program_change() -> bytes:
    """Data bytes one by one, then notes."""
    return file(b"\x00\xc0\x05" + b"\x00\x06" * 9 + NOTE + b"\x00\xd0\x05\x03\x06" + text(1, b"x") + b"\x00\x07" + NOTE)


@becomes(12)
def events_of_every_system_status() -> bytes:
    between = b"\x00\xf1\x05\x00\xf2\x05\x06\x00\xf3\x05\x00\xf6\x00\xf8\x00\xfa\x00\xfe"
    return file((NOTE + between) * 12)


@becomes("expected a MIDI file, got data above 127")
def running_status_with_data_above_127() -> bytes:
    return file(b"\x00\x90" + b"\x3c\x40\x60\x3c\x00\x00" * 3 + b"\x3c\x90" + b"\x00\x3c\x00" * 20)


@becomes(1)
def note_off_in_another_track() -> bytes:
    return file(b"\x00\x90\x3c\x40", b"\x60\x80\x3c\x40")


@becomes(2)
def notes_ended_by_all_notes_off() -> bytes:
    return file(b"\x00\x90\x3c\x40" + b"\x60\xb0\x7b\x00" + NOTE)


@becomes(100_000, large=True)
def all_notes_off_after_every_note() -> bytes:
    return file(
        b"".join(bytes([1, 0x90, i % 128, 64, 1, 0xB0, 120 + i % 8, 0]) for i in range(400_000) if i % 8 in (0, 3))
    )


@becomes("expected a MIDI file")
def pitch_above_127() -> bytes:
    return file(b"\x00\x90\xc8\x40\x60\x80\xc8\x40")


@becomes("expected a MIDI file")
def velocity_above_127() -> bytes:
    return file(b"\x00\x90\x3c\xc8\x60\x80\x3c\x40")


@becomes("expected a MIDI file")
def reserved_statuses() -> bytes:
    return file(NOTE + b"\x00\xf4\x00\xf5\x00\xf9\x00\xfd")


@becomes(2)
def note_ons_twice_and_offs_three_times() -> bytes:
    return file(b"\x00\x90\x3c\x40" * 2 + b"\x60\x80\x3c\x40" * 3)


@becomes(128 * 15)
def all_keys_on_all_channels_at_once() -> bytes:
    on = b"".join(bytes([0, 0x90 | channel, pitch, 127]) for channel in range(16) for pitch in range(128))
    off = b"".join(bytes([1, 0x80 | channel, pitch, 0]) for channel in range(16) for pitch in range(128))
    return file(on + off)


@becomes("expected at most 500000 notes", large=True)
def a_million_notes_at_once() -> bytes:
    return file(
        b"\x00\x90"
        + b"\x3c\x40\x00" * 1_000_000
        + b"\x3c\x40"
        + b"\x01\x80"
        + b"\x3c\x00\x00" * 1_000_000
        + b"\x3c\x00"
    )


@becomes("got none")
def drums_only() -> bytes:
    return file(note(36, channel=9) * 4)


@becomes("expected at most 500000 notes", large=True)
def as_many_notes_as_fit() -> bytes:
    pairs = MAX_BYTES // 6 - 100
    return file(b"\x00\x90" + b"\x3c\x40\x01\x3c\x00\x01" * pairs + b"\x3c\x40\x01\x3c\x00")


@becomes("got none")
def no_events() -> bytes:
    return file(b"")


# --- Pedal ----------------------------------------------------------------------------------------------------------


@becomes("got none")
def pedal_only() -> bytes:
    return file(pedal(127) + pedal(0, gap=960))


@becomes(1, large=True)
def pedal_flutter() -> bytes:
    return file(note(length=0) + b"".join(pedal(value, gap=1) for value in (127, 0) * 500_000))


@becomes(1000, large=True)
def pedals_on_a_thousand_tracks() -> bytes:
    flutter = b"".join(pedal(value, gap=1) for value in (127, 0, 63, 64) * 100)
    return file(*(note(gap=track) + flutter for track in range(1000)))


@becomes(65_535, large=True)
def pedals_on_all_tracks_there_can_be() -> bytes:
    return file(*(pedal(127, gap=track) + note(length=1) + pedal(0, gap=1) for track in range(65_535)))


@becomes(2, large=True)
def as_much_pedal_as_fits() -> bytes:
    pairs = MAX_BYTES // 12 - 100
    flutter = b"\x00\xb0" + b"\x40\x7f\x01\x40\x00\x01" * pairs + b"\x40\x00"
    return file(NOTE + flutter, NOTE + flutter)


@becomes(1)
def pedal_never_lifted() -> bytes:
    return file(pedal(127) + NOTE)


# --- Tracks and texts -----------------------------------------------------------------------------------------------


@becomes(100)
def a_hundred_tracks() -> bytes:
    return file(*(note(20 + track, channel=track % 9) for track in range(100)))


@becomes(20_000, large=True)
def a_program_change_before_every_note() -> bytes:
    return file(b"".join(bytes([0, 0xC0 | i % 9, i // 9 % 128]) + note(channel=i % 9) for i in range(20_000)))


@becomes(2)
def type_0_with_two_tracks() -> bytes:
    return file(NOTE, NOTE, kind=0)


@becomes("expected a MIDI file of type 0 or 1, .* got type 2")
def type_2() -> bytes:
    return file(NOTE, NOTE, kind=2)


@becomes("expected a MIDI file")
def type_700() -> bytes:
    return file(NOTE, kind=700)


@becomes(1)
def names_that_are_no_utf8() -> bytes:
    return file(text(3, b"\xff\xfe\xc3\x28\x00Klavier") + text(5, b"\xed\xa0\x80") + NOTE)


@becomes(1)
def names_in_utf16() -> bytes:
    return file(text(3, "Études, Op. 10".encode("utf-16")) + NOTE)


@becomes(1, large=True)
def name_of_a_megabyte() -> bytes:
    return file(text(3, b"x" * 1_000_000) + NOTE)


@becomes(1)
def key_and_metre_that_do_not_exist() -> bytes:
    return file(b"\x00\xff\x59\x02\x7f\x09" + b"\x00\xff\x58\x04\x00\xff\x00\x00" + NOTE)


@becomes(1)
def unknown_meta_events() -> bytes:
    return file(b"".join(text(kind, b"?") for kind in range(0x60, 0x80)) + NOTE)


@becomes(f"expected at most {MAX_BYTES} bytes", large=True)
def system_exclusive_message_of_50_megabytes() -> bytes:
    size = 50 * 2**20
    return file(b"\x00\xf0" + varlen(size) + bytes(size - 1) + b"\xf7" + NOTE)


@becomes(1)
def system_exclusive_message_in_parts() -> bytes:
    return file(b"\x00\xf0\x03\x43\x12\x00" + b"\x10\xf7\x04\x01\x02\x03\xf7" + NOTE)

"""MIDI files that nobody wants to meet, each built by a function of its own from bytes written by hand.

``FILES`` holds what becomes of each: a number is how many notes are read from it, a string is the reason why it is left
out. Those whose notes and pedals are the trouble are in :mod:`tests.hostile_notes`.
"""

from __future__ import annotations

import struct

from dsmr.music.midi import MAX_BYTES
from tests import hostile_notes
from tests.hostile import Files
from tests.midi_bytes import END, NOTE, chunk, file, header, note, tempo, text, varlen

FILES = Files(hostile_notes.FILES)


# --- Cut short, at every kind of byte -------------------------------------------------------------------------------


@FILES.becomes("expected a MIDI file")
def no_bytes_at_all() -> bytes:
    return b""


@FILES.becomes("expected a MIDI file")
def cut_in_the_first_word() -> bytes:
    return file(NOTE)[:2]


@FILES.becomes("expected a MIDI file")
def cut_in_the_header() -> bytes:
    return file(NOTE)[:11]


@FILES.becomes("expected a MIDI file")
def cut_after_the_header() -> bytes:
    return file(NOTE)[:14]


@FILES.becomes("expected a MIDI file")
def cut_in_the_word_that_begins_a_track() -> bytes:
    return file(NOTE)[:16]


@FILES.becomes("expected a MIDI file")
def cut_in_the_length_of_a_track() -> bytes:
    return file(NOTE)[:20]


@FILES.becomes("expected a MIDI file")
def cut_in_a_gap() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x81"


@FILES.becomes("expected a MIDI file")
def cut_after_a_status() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\x90"


@FILES.becomes("expected a MIDI file")
def cut_between_pitch_and_velocity() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\x90\x3c"


@FILES.becomes("expected a MIDI file")
def cut_in_a_tempo() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xff\x51\x03\x07"


@FILES.becomes("expected a MIDI file")
def cut_in_a_text() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xff\x03\x10Moon"


@FILES.becomes("expected a MIDI file")
def cut_in_a_system_exclusive_message() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x20" + NOTE + b"\x00\xf0\x10\x41\x10"


@FILES.becomes("expected a MIDI file")
def cut_before_the_end_of_the_track() -> bytes:
    return file(NOTE)[: -len(END)]


@FILES.becomes("expected a MIDI file with the 2 tracks that it announces, got 1")
def second_track_missing() -> bytes:
    return header(2) + chunk(b"MTrk", NOTE + END)


# --- Lengths and counts that lie ------------------------------------------------------------------------------------


@FILES.becomes("expected a MIDI file")
def header_of_four_gigabytes() -> bytes:
    return b"MThd\xff\xff\xff\xff" + file(NOTE)[8:]


@FILES.becomes("expected a MIDI file")
def header_of_no_bytes() -> bytes:
    return b"MThd\x00\x00\x00\x00" + file(NOTE)[8:]


@FILES.becomes(1)
def header_longer_than_today() -> bytes:
    return chunk(b"MThd", file(NOTE)[8:14] + bytes(4)) + chunk(b"MTrk", NOTE + END)


@FILES.becomes("expected a MIDI file")
def track_of_four_gigabytes() -> bytes:
    return header() + b"MTrk\xff\xff\xff\xff" + NOTE + END


@FILES.becomes("expected a MIDI file, whose tracks have an end, got none")
def track_of_no_bytes() -> bytes:
    return header() + b"MTrk\x00\x00\x00\x00" + NOTE + END


@FILES.becomes("expected a MIDI file")
def track_that_ends_inside_an_event() -> bytes:
    return header() + chunk(b"MTrk", NOTE[:6]) + NOTE[6:] + END


@FILES.becomes("expected a MIDI file with the 65535 tracks that it announces, got 1")
def tracks_announced_65535() -> bytes:
    return header(65_535) + chunk(b"MTrk", NOTE + END)


@FILES.becomes(1)
def no_tracks_announced() -> bytes:
    return header(0) + chunk(b"MTrk", NOTE + END)


@FILES.becomes("expected a MIDI file")
def text_of_negative_length() -> bytes:
    return header() + chunk(b"MTrk", b"\x00\xff\x01\xff\xff\xff\xff\x7f" + NOTE + END)


@FILES.becomes("expected a MIDI file")
def gap_of_five_bytes() -> bytes:
    return file(b"\x8f\xff\xff\xff\x7f" + NOTE[1:])


@FILES.becomes("expected a MIDI file")
def gap_of_sixty_bytes() -> bytes:
    return file(b"\x80" * 60 + NOTE)


@FILES.becomes(1)
def unknown_chunks_around_the_track() -> bytes:
    return header() + chunk(b"XFIH", bytes(9)) + chunk(b"MTrk", NOTE + END) + chunk(b"Junk", b"MTrk" * 9)


@FILES.becomes("expected a MIDI file")
def chunk_in_lower_case() -> bytes:
    return file(NOTE).replace(b"MTrk", b"mtrk")


@FILES.becomes(1)
def rubbish_after_the_last_track() -> bytes:
    return file(NOTE) + b"\xff" * 1000


@FILES.becomes(1)
def wrapped_in_riff() -> bytes:
    midi = file(NOTE)
    return b"RIFF" + struct.pack("<I", len(midi) + 12) + b"RMIDdata" + struct.pack("<I", len(midi)) + midi


@FILES.becomes(2)
def wrapped_in_riff_behind_other_chunks() -> bytes:
    midi = file(NOTE, NOTE)
    listed = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"  # of odd length, and so padded
    return (
        b"RIFF" + struct.pack("<I", len(midi) + 26) + b"RMID" + listed + b"data" + struct.pack("<I", len(midi)) + midi
    )


@FILES.becomes("got a RIFF file without one")
def riff_without_its_end() -> bytes:
    return wrapped_in_riff()[:-1]


@FILES.becomes("got a RIFF file without one")
def riff_of_no_chunks() -> bytes:
    return b"RIFF\x04\x00\x00\x00RMID"


@FILES.becomes(3)
def more_tracks_than_announced() -> bytes:
    return header(1) + chunk(b"MTrk", NOTE + END) * 3


@FILES.becomes("expected a MIDI file, got one that ends inside a chunk")
def track_beyond_those_announced_cut_short() -> bytes:
    return header(1) + chunk(b"MTrk", NOTE + END) + chunk(b"MTrk", NOTE + END)[:-1]


@FILES.becomes("expected a MIDI file, whose tracks have an end, got none")
def track_longer_than_its_length_says() -> bytes:
    """The length ends between two notes: the second would be lost."""
    return header() + b"MTrk" + struct.pack(">I", len(NOTE)) + NOTE + NOTE + END


@FILES.becomes("expected a MIDI file, got 20 bytes after the end of the track")
def length_of_a_track_that_swallows_the_next() -> bytes:
    track = chunk(b"MTrk", NOTE + END)
    return header(1) + b"MTrk" + struct.pack(">I", len(NOTE + END) + len(track)) + NOTE + END + track


@FILES.becomes(1)
def zeros_after_the_end_of_a_track() -> bytes:
    return header() + chunk(b"MTrk", NOTE + END + bytes(3))


@FILES.becomes(2)
def tracks_without_end_of_track() -> bytes:
    return header(2) + chunk(b"MTrk", NOTE) * 2


# --- Time -----------------------------------------------------------------------------------------------------------


@FILES.becomes("at most 14400 s of music")
def giant_tempo() -> bytes:
    """The slowest there is: 16.8 s a beat."""
    return file(tempo(0xFFFFFF) + note(length=1_000_000))


@FILES.becomes("expected at least 1 microsecond a beat, got 0 at tick 0")
def tempo_of_nothing() -> bytes:
    return file(tempo(0) + NOTE)


@FILES.becomes(100_000, large=True)
def tempo_change_at_every_note() -> bytes:
    return file(b"".join(tempo(400_000 + i % 1000) + note(length=10) for i in range(100_000)))


@FILES.becomes("whose tempos have 3 bytes, got 2")
def tempo_of_two_bytes() -> bytes:
    return file(b"\x00\xff\x51\x02\x07\xa1" + NOTE)


@FILES.becomes("at most 14400 s of music")
def gap_of_a_thousand_million_ticks() -> bytes:
    return file(NOTE + b"".join(text(1, b"").replace(b"\x00", varlen(250_000_000), 1) for _ in range(4)) + NOTE)


@FILES.becomes(41)
def ticks_beyond_32_bits() -> bytes:
    """Forty gaps of 2^28 - 1 ticks at the fastest tempo: 22 s of music."""
    return file(tempo(1) + NOTE + b"".join(note(gap=2**28 - 1) for _ in range(40)))


@FILES.becomes("at most 14400 s of music")
def a_day_of_music() -> bytes:
    return file(b"".join(note(gap=960 * 60 - 96) for _ in range(24 * 60)))


@FILES.becomes(2)
def three_hours_of_silence() -> bytes:
    return file(NOTE + note(gap=960 * 3600 * 3))


@FILES.becomes(1)
def smpte_time() -> bytes:
    return file(NOTE, division=0xE728)


@FILES.becomes("at least one tick a beat")
def smpte_time_without_ticks() -> bytes:
    return file(NOTE, division=0xE700)


@FILES.becomes("expected a MIDI file of 24, 25, 29, 30 frames a second, got 60")
def smpte_time_of_sixty_frames() -> bytes:
    return file(NOTE, division=0xC428)


@FILES.becomes("at least one tick a beat")
def no_ticks_a_beat() -> bytes:
    return file(NOTE, division=0)


@FILES.becomes(1)
def one_tick_a_beat() -> bytes:
    return file(NOTE, division=1)


@FILES.becomes("whose tempos have 3 bytes, got 0")
def tempo_without_bytes_at_the_very_end() -> bytes:
    return header() + chunk(b"MTrk", NOTE + b"\x00\xff\x51\x00")


@FILES.becomes("a track that ends inside an event")
def gap_without_end_at_the_very_end() -> bytes:
    return header() + chunk(b"MTrk", NOTE + b"\x81")


# --- Tracks and texts -----------------------------------------------------------------------------------------------


@FILES.becomes(100)
def a_hundred_tracks() -> bytes:
    return file(*(note(20 + track, channel=track % 9) for track in range(100)))


@FILES.becomes(20_000, large=True)
def a_program_change_before_every_note() -> bytes:
    return file(b"".join(bytes([0, 0xC0 | i % 9, i // 9 % 128]) + note(channel=i % 9) for i in range(20_000)))


@FILES.becomes(2)
def type_0_with_two_tracks() -> bytes:
    return file(NOTE, NOTE, kind=0)


@FILES.becomes("expected a MIDI file of type 0 or 1, .* got type 2")
def type_2() -> bytes:
    return file(NOTE, NOTE, kind=2)


@FILES.becomes("expected a MIDI file")
def type_700() -> bytes:
    return file(NOTE, kind=700)


@FILES.becomes(1)
def names_that_are_no_utf8() -> bytes:
    return file(text(3, b"\xff\xfe\xc3\x28\x00Klavier") + text(5, b"\xed\xa0\x80") + NOTE)


@FILES.becomes(1)
def names_in_utf16() -> bytes:
    return file(text(3, "Études, Op. 10".encode("utf-16")) + NOTE)


@FILES.becomes(1, large=True)
def name_of_a_megabyte() -> bytes:
    return file(text(3, b"x" * 1_000_000) + NOTE)


@FILES.becomes(1)
def key_and_metre_that_do_not_exist() -> bytes:
    return file(b"\x00\xff\x59\x02\x7f\x09" + b"\x00\xff\x58\x04\x00\xff\x00\x00" + NOTE)


@FILES.becomes(1)
def unknown_meta_events() -> bytes:
    return file(b"".join(text(kind, b"?") for kind in range(0x60, 0x80)) + NOTE)


@FILES.becomes(f"expected at most {MAX_BYTES} bytes", large=True)
def system_exclusive_message_of_50_megabytes() -> bytes:
    size = 50 * 2**20
    return file(b"\x00\xf0" + varlen(size) + bytes(size - 1) + b"\xf7" + NOTE)


@FILES.becomes(1)
def system_exclusive_message_in_parts() -> bytes:
    return file(b"\x00\xf0\x03\x43\x12\x00" + b"\x10\xf7\x04\x01\x02\x03\xf7" + NOTE)

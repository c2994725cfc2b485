"""MIDI files with notes and pedals that nobody wants to meet: a part of :mod:`tests.hostile_midi`."""

from __future__ import annotations

from dsmr.music.midi import MAX_BYTES
from tests.hostile import Files
from tests.midi_bytes import NOTE, file, note, pedal, text

FILES = Files()


# --- Notes ----------------------------------------------------------------------------------------------------------


@FILES.becomes(3)
def notes_of_no_length() -> bytes:
    return file(note(length=0) * 3)


@FILES.becomes("got none")
def note_off_before_its_note_on() -> bytes:
    """A note of negative length."""
    return file(b"\x00\x80\x3c\x40\x60\x90\x3c\x40")


@FILES.becomes("got none")
def notes_without_end() -> bytes:
    return file(b"".join(bytes([10, 0x90, pitch, 64]) for pitch in range(128)))


@FILES.becomes(3)
def running_status() -> bytes:
    return file(b"\x00\x90" + b"\x3c\x40\x60\x3c\x00\x00" * 3 + b"\x3c\x00")


@FILES.becomes("expected a MIDI file")
def running_status_with_nothing_to_run_from() -> bytes:
    return file(b"\x00\x3c\x40\x60\x3c\x00")


@FILES.becomes(1)
def running_status_after_a_text() -> bytes:
    return file(NOTE + text(1, b"x") + b"\x00\x3c\x40\x60\x3c\x00")


@FILES.becomes(2)
def running_status_after_a_system_exclusive_message() -> bytes:
    """The standard ends it there; files in the wild go on."""
    return file(NOTE + b"\x00\x90\x40\x40" + b"\x05\xf0\x02\x41\xf7" + b"\x60\x40\x00")


@FILES.becomes(2)
def running_program_change() -> bytes:
    """Data bytes one by one, then notes."""
    return file(b"\x00\xc0\x05" + b"\x00\x06" * 9 + NOTE + b"\x00\xd0\x05\x03\x06" + text(1, b"x") + b"\x00\x07" + NOTE)


@FILES.becomes(12)
def events_of_every_system_status() -> bytes:
    between = b"\x00\xf1\x05\x00\xf2\x05\x06\x00\xf3\x05\x00\xf6\x00\xf8\x00\xfa\x00\xfe"
    return file((NOTE + between) * 12)


@FILES.becomes("expected a MIDI file, got data above 127")
def running_status_with_data_above_127() -> bytes:
    return file(b"\x00\x90" + b"\x3c\x40\x60\x3c\x00\x00" * 3 + b"\x3c\x90" + b"\x00\x3c\x00" * 20)


@FILES.becomes(1)
def note_off_in_another_track() -> bytes:
    return file(b"\x00\x90\x3c\x40", b"\x60\x80\x3c\x40")


@FILES.becomes(2)
def notes_ended_by_all_notes_off() -> bytes:
    return file(b"\x00\x90\x3c\x40" + b"\x60\xb0\x7b\x00" + NOTE)


@FILES.becomes(100_000, large=True)
def all_notes_off_after_every_note() -> bytes:
    return file(
        b"".join(bytes([1, 0x90, i % 128, 64, 1, 0xB0, 120 + i % 8, 0]) for i in range(400_000) if i % 8 in (0, 3))
    )


@FILES.becomes("expected a MIDI file")
def pitch_above_127() -> bytes:
    return file(b"\x00\x90\xc8\x40\x60\x80\xc8\x40")


@FILES.becomes("expected a MIDI file")
def velocity_above_127() -> bytes:
    return file(b"\x00\x90\x3c\xc8\x60\x80\x3c\x40")


@FILES.becomes("expected a MIDI file")
def reserved_statuses() -> bytes:
    return file(NOTE + b"\x00\xf4\x00\xf5\x00\xf9\x00\xfd")


@FILES.becomes(2)
def note_ons_twice_and_offs_three_times() -> bytes:
    return file(b"\x00\x90\x3c\x40" * 2 + b"\x60\x80\x3c\x40" * 3)


@FILES.becomes(128 * 15)
def all_keys_on_all_channels_at_once() -> bytes:
    on = b"".join(bytes([0, 0x90 | channel, pitch, 127]) for channel in range(16) for pitch in range(128))
    off = b"".join(bytes([1, 0x80 | channel, pitch, 0]) for channel in range(16) for pitch in range(128))
    return file(on + off)


@FILES.becomes("expected at most 500000 notes", large=True)
def a_million_notes_at_once() -> bytes:
    return file(
        b"\x00\x90"
        + b"\x3c\x40\x00" * 1_000_000
        + b"\x3c\x40"
        + b"\x01\x80"
        + b"\x3c\x00\x00" * 1_000_000
        + b"\x3c\x00"
    )


@FILES.becomes("got none")
def drums_only() -> bytes:
    return file(note(36, channel=9) * 4)


@FILES.becomes("expected at most 500000 notes", large=True)
def as_many_notes_as_fit() -> bytes:
    pairs = MAX_BYTES // 6 - 100
    return file(b"\x00\x90" + b"\x3c\x40\x01\x3c\x00\x01" * pairs + b"\x3c\x40\x01\x3c\x00")


@FILES.becomes("got none")
def no_events() -> bytes:
    return file(b"")


# --- Pedal ----------------------------------------------------------------------------------------------------------


@FILES.becomes("got none")
def pedal_only() -> bytes:
    return file(pedal(127) + pedal(0, gap=960))


@FILES.becomes(1, large=True)
def pedal_flutter() -> bytes:
    return file(note(length=0) + b"".join(pedal(value, gap=1) for value in (127, 0) * 500_000))


@FILES.becomes(1000, large=True)
def pedals_on_a_thousand_tracks() -> bytes:
    flutter = b"".join(pedal(value, gap=1) for value in (127, 0, 63, 64) * 100)
    return file(*(note(gap=track) + flutter for track in range(1000)))


@FILES.becomes(65_535, large=True)
def pedals_on_all_tracks_there_can_be() -> bytes:
    return file(*(pedal(127, gap=track) + note(length=1) + pedal(0, gap=1) for track in range(65_535)))


@FILES.becomes(2, large=True)
def as_much_pedal_as_fits() -> bytes:
    pairs = MAX_BYTES // 12 - 100
    flutter = b"\x00\xb0" + b"\x40\x7f\x01\x40\x00\x01" * pairs + b"\x40\x00"
    return file(NOTE + flutter, NOTE + flutter)


@FILES.becomes(1)
def pedal_never_lifted() -> bytes:
    return file(pedal(127) + NOTE)

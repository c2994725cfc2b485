"""Corpora: from MIDI files or the built-in pianist to a token store, and from a store to lanes of segments."""

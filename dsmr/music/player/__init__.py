"""Player: a web page in one file, on which music is seen while it is heard, and from which it is taken as MIDI."""

"""Music: performances, their tokens, MIDI files and sound. Nothing here needs PyTorch."""

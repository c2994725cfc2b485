"""Whole models: a real training step, generation and corpus preparation, with our attention and with its peers.

Each command is a module with `parts(settings)`: see `bench.harness.settings.Part`.
"""

COMMANDS = ("train", "generate", "prepare")

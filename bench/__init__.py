"""Measurements of this code and its peers: `python -m bench --help`, and METHOD.md beside this file."""

from dsmr.process import keep_spins_short

keep_spins_short()  # here, for every command of this package, and before any of its modules imports torch

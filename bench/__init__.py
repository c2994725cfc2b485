"""Measurements of this code and its peers: `python -m bench --help`, and METHOD.md beside this file."""

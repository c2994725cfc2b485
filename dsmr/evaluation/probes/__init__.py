"""Probes of memory, which compare a model's predictions with and without parts of its past.

`krcu` clears the memory inside a piece, `truncation` cuts the history, `returns` and `recall` ask whether themes that
come back are recognised. `dsmr.evaluation.models` puts several models beside each other.
"""

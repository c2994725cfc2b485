"""Harness: a case, its measurement, the machine it ran on, and the results as they are kept."""

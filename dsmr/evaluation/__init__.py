"""Evaluation: how well models predict whole pieces, what they use their memory for, and whether two differ."""

from dsmr.evaluation.pieces import Evaluation, evaluate_pieces

__all__ = ["Evaluation", "evaluate_pieces"]

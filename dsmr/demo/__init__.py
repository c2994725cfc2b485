"""Demonstration: from nothing to a trained model, a page about it, and music."""

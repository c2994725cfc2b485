"""Counts of memory."""

from __future__ import annotations

import torch

from bench.harness import memory

CPU = torch.device("cpu")


def test_peak_memory_counts_what_is_held_at_once():
    def work():
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second + 1

    assert 8 * 2**20 <= memory.peak_allocated(work, CPU) < 8.1 * 2**20

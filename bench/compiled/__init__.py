"""Compiled code: what kernels compile to, held against a record and budgets."""

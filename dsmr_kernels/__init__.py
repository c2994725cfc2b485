"""Fused causal attention over ring-buffer memory for recurrent Transformers."""

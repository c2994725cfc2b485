"""Attention: the cases, how their inputs are filled and checked, and who contends."""

"""Contenders: who computes attention's cases, each configured as its own experts would."""

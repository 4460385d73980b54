"""Attention over packed sequences: which one runs, and each of them."""

"""Routing and row permutation in CUDA C++, built on first use by torch's extension loader."""

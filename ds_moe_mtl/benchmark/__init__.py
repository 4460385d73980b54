"""Throughput against the dense model of equal FLOPs."""

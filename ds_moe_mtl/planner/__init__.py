"""Arithmetic on a run that has not started: weights, FLOPs, memory, traffic, step time."""

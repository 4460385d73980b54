"""Sparse multi-task encoders with task-conditioned DeepSpeed MoE layers."""

"""The DeepSpeed edge: the sparse layer as DeepSpeed's own MoE."""

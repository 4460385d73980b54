"""The operators by the names that moe_kernels.verified has them under."""

OPERATORS = ("short_attention", "residual_norm", "joint_projection")

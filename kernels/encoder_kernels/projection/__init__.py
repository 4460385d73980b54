"""Several linear maps of one input as one product."""

from encoder_kernels.projection.function import project

__all__ = ["project"]

"""Adam's step of flat partitions from 16-bit gradients where they lie, without a wait of the host.

Imports torch only; triton is imported by the first call that needs it. See kernels/README.md.
"""

from update_kernels.function import adam_update
from update_kernels.types import AdamOptions, Outcome, Partition

__all__ = ["AdamOptions", "Outcome", "Partition", "adam_update"]

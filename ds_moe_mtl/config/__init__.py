"""What a run is: typed, validated once at the edge."""

from ds_moe_mtl.config.errors import UserError

__all__ = ["UserError"]

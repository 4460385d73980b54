"""Models in plain PyTorch: no DeepSpeed, no process groups."""

from ds_moe_mtl.models.heads import HeadSpec
from ds_moe_mtl.models.multitask import MultiTaskNetwork, build_network
from ds_moe_mtl.models.token_level.context import GateCall, RoutedFFN
from ds_moe_mtl.models.token_level.direct_calls import auxiliary_loss, call_scope, routed_ffns
from ds_moe_mtl.models.token_level.experts import FeedForward
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.moe_layer import MoELayer
from ds_moe_mtl.models.token_level.saving import load_upcycled, save_upcycled
from ds_moe_mtl.models.token_level.upcycle import upcycle

__all__ = [
    "FeedForward",
    "GateCall",
    "HeadSpec",
    "MoELayer",
    "MultiTaskNetwork",
    "RoutedFFN",
    "RoutingOptions",
    "auxiliary_loss",
    "build_network",
    "call_scope",
    "load_upcycled",
    "routed_ffns",
    "save_upcycled",
    "upcycle",
]

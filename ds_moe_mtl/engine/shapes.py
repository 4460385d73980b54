"""What a run's configuration says of the shapes that its network trains with."""

import torch

from ds_moe_mtl.config import RunConfig, UserError
from ds_moe_mtl.models import MultiTaskNetwork
from ds_moe_mtl.models.attention.choice import PACKED_FLASH
from ds_moe_mtl.models.graphs import CudaGraphs
from ds_moe_mtl.models.shapes import Shapes


def set_shapes(network, config: RunConfig, device: torch.device) -> None:
    """Have the network, which is on its device and in its type, train with the run's shapes.

    Raises UserError for a network or an attention that cannot.
    """
    train = config.train
    if train.fill_tokens == 1:
        return
    if not isinstance(network, MultiTaskNetwork):
        raise UserError(
            f"train.fill_tokens = {train.fill_tokens} with model.encoder = {config.model.encoder}, "
            "which generates; allowed: 1"
        )
    graphs = None
    if train.cuda_graphs:
        name = network.attention_on(device, network.encoder.dtype)
        if name != PACKED_FLASH:
            raise UserError(
                f"train.cuda_graphs = true with the attention {name}, whose launches follow each "
                f"batch's lengths; allowed: a GPU, precision and head size that take {PACKED_FLASH}"
            )
        graphs = network.recorded(CudaGraphs())
    network.shapes = Shapes(train.fill_tokens, graphs)

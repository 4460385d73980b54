"""NVIDIA's cards as their data sheets have them: the one table of peaks, memory and bandwidths.

A card is found by exactly the name that torch gives it. So a slice of a card (MIG), or a variant
that is not listed, is none of these: nobody divides by a peak that is not its own.
"""

from typing import NamedTuple


class Card(NamedTuple):
    """Published limits of one GPU.

    half: floating-point operations a second of dense bf16 and fp16 products (no sparsity; Volta
    and Turing: fp16 alone); single: of fp32 without TF32. memory: bytes; bandwidth: bytes a second
    of that memory; link: bytes a second to the other GPUs of a node, one way. tensor_bf16: whether
    its products take bf16.
    """

    half: float
    single: float
    memory: float
    bandwidth: float
    link: float
    tensor_bf16: bool = True

    def peak(self, precision: str) -> float | None:
        """Return operations a second in fp32, bf16 or fp16; None where no peak is published."""
        if precision == "fp32":
            return self.single
        return self.half if precision == "fp16" or self.tensor_bf16 else None


def _card(half, single, memory, bandwidth, link, tensor_bf16=True) -> Card:
    """Return a card from TFLOPs/s, TFLOPs/s, GB, GB/s, GB/s."""
    return Card(half * 1e12, single * 1e12, memory * 1e9, bandwidth * 1e9, link * 1e9, tensor_bf16)


CARDS = {
    "h100-sxm": _card(989.4, 66.9, 80, 3350, 450),
    "h100-pcie": _card(756, 51, 80, 2000, 64),
    "h100-nvl": _card(835, 60, 94, 3900, 300),
    "h200-sxm": _card(989.4, 66.9, 141, 4800, 450),
    "a100-sxm-80": _card(312, 19.5, 80, 2039, 300),
    "a100-sxm-40": _card(312, 19.5, 40, 1555, 300),
    "a100-pcie-80": _card(312, 19.5, 80, 1935, 32),
    "a100-pcie-40": _card(312, 19.5, 40, 1555, 32),
    "l40s": _card(362, 91.6, 48, 864, 32),
    "l4": _card(121, 30.3, 24, 300, 32),
    "a10": _card(125, 31.2, 24, 600, 32),
    "v100-sxm-32": _card(125, 15.7, 32, 900, 150, tensor_bf16=False),
    "v100-sxm-16": _card(125, 15.7, 16, 900, 150, tensor_bf16=False),
    "t4": _card(65, 8.1, 16, 320, 16, tensor_bf16=False),
}
"""Sources: NVIDIA's data sheets "H100 Tensor Core GPU", "H200 Tensor Core GPU", "A100 Tensor Core
GPU", "L40S", "L4 Tensor Core GPU", "A10 Tensor Core GPU", "V100 Tensor Core GPU" and "T4". Where a
sheet gives products with sparsity, half of it stands here. A link is half of NVLink's two ways; of
a card without NVLink it is PCI Express."""

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "Tesla V100-SXM2-32GB": "v100-sxm-32",
    "Tesla V100-SXM2-16GB": "v100-sxm-16",
    "Tesla T4": "t4",
}
"""Cards by the name that torch.cuda.get_device_name gives them."""


def card_name(device_name: str) -> str | None:
    """Return the key in CARDS of a device by its name; None where it is not listed."""
    return NAMES.get(device_name)


def card_of(device_name: str) -> Card | None:
    """Return a device's card by its name; None where it is not listed."""
    return CARDS.get(NAMES.get(device_name, ""))

"""The names of one tensor in the plain layer and in DeepSpeed's.

Plain keys:     <layer>.gate.wg.weight,               <layer>.experts.<global expert>.<tensor>
DeepSpeed keys: <layer>.deepspeed_moe.gate.wg.weight,
                <layer>.deepspeed_moe.experts.deepspeed_experts.<local expert>.<tensor>
A shared slice is <layer>.shared.<tensor> in both; it is no expert, every rank has all of it.
"""

import re

_EXPERT = re.compile(r"\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.")


def plain_key(key: str, place: int = 0, num_local_experts: int = 0) -> str:
    """Return the plain form's name for a tensor of DeepSpeed's form; others stay as they are.

    The local expert index becomes the global one of the rank at `place` in its expert group.
    """
    key = _EXPERT.sub(lambda match: f".experts.{int(match[1]) + place * num_local_experts}.", key)
    return key.replace(".deepspeed_moe.gate.", ".gate.")


def is_expert_key(key: str) -> bool:
    """Return whether a key of DeepSpeed's form names an expert's tensor."""
    return _EXPERT.search(key) is not None

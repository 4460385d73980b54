"""Each task's gate, from the model's file alone: no network is built.

K tasks, L layers with experts, E experts, D hidden size.
"""

import re
from pathlib import Path

import numpy as np

from ds_moe_mtl.analysis.page.stored import Part
from ds_moe_mtl.models.description import WEIGHTS

_GATE = re.compile(r"(?:^|\.)(\d+)\..*\.gate\.wg\.(weight|vectors|generator)$")


def task_gates(part: Part) -> np.ndarray | None:
    """Return every task's gates [K, L, E * D], centred over experts; None without gates of tasks.

    A constant that is added to all experts' rows changes no choice, so it is taken out. Of merged
    experts a gate is the table of mixtures, and D is 1.
    """
    description, weights = part.description, part.folder / "model" / WEIGHTS
    if description is None or description["kind"] != "mt_tag" or not weights.is_file():
        return None
    options, gates = description["routing"], np.array(description["gate_of_task"])
    matrices = [
        _matrix(found).reshape(options["num_gates"], options["num_experts"], -1)
        for _, found in sorted(_stored(weights).items())
    ]
    if not matrices:
        return None
    gates_GLED = np.stack(matrices, axis=1)
    gates_GLED = gates_GLED - gates_GLED.mean(axis=2, keepdims=True)
    return gates_GLED[gates].reshape(len(gates), len(matrices), -1)


def _stored(weights: Path) -> dict[int, dict[str, np.ndarray]]:
    """Return the tensors of the gates by layer."""
    from safetensors import safe_open

    found: dict[int, dict[str, np.ndarray]] = {}
    with safe_open(weights, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, it is no mapping
            if match := _GATE.search(key):
                tensor = file.get_tensor(key).float().numpy()
                found.setdefault(int(match[1]), {})[match[2]] = tensor
    return found


def _matrix(found: dict[str, np.ndarray]) -> np.ndarray:
    """Return a layer's gates; generated ones are vectors times their generator."""
    return found["weight"] if "weight" in found else found["vectors"] @ found["generator"]

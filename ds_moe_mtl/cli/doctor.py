"""ds-moe-mtl doctor: what this machine can run, before a run is queued."""

import json
import shutil

from ds_moe_mtl.cli.arguments import Parser, answer

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "triton", "mpi4py")


def main(arguments: list[str]) -> int:
    """Print what was found and return the exit status."""
    parser = Parser("doctor", "Checks what this machine can run.", "ds-moe-mtl doctor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    return answer(lambda: _doctor(options.json))


def _doctor(as_json: bool) -> int:
    found = examine()
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20}{value}")
    return 0


def examine() -> dict[str, str]:
    """Return findings by name: versions, devices, kernels, encoder, launchers."""
    import torch

    from ds_moe_mtl.models.pretrained import find_encoder
    from ds_moe_mtl.ranks.machine import installed_versions
    from moe_kernels import resolve_impl

    found = installed_versions(_PACKAGES)
    gpus = torch.cuda.device_count()
    device = "cuda" if gpus else "cpu"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus))
    found["GPUs"] = f"{gpus} ({names})" if gpus else "none: training runs on CPU through gloo"
    found["precisions"] = "fp32, bf16, fp16" if gpus else "fp32, bf16"
    found["kernels"] = resolve_impl("auto", torch.device(device))
    try:
        source = find_encoder("minilm")
        found["minilm"] = source.resolved + (f"; {source.note}" if source.note else "")
    except ValueError as error:
        found["minilm"] = str(error)
    for command in ("deepspeed", "torchrun", "mpirun", "srun", "nvcc"):
        found[f"{command} command"] = shutil.which(command) or "not found"
    return found

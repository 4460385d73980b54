"""ds-moe-mtl doctor: what this machine can run, and which encoders, before a run is queued."""

import json
import shutil

from ds_moe_mtl.cli.arguments import Parser, answer
from ds_moe_mtl.config import UserError

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "triton", "mpi4py")


def main(arguments: list[str]) -> int:
    """Print what was found and return the exit status."""
    parser = Parser(
        "doctor",
        "Checks what this machine can run, or whether an encoder can be trained.",
        "ds-moe-mtl doctor FacebookAI/xlm-roberta-base",
    )
    parser.add_argument("encoder", nargs="?", help="minilm, a Hub id or a folder: is tried out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="look at the ranks of a launcher: torchrun -m ds_moe_mtl doctor --distributed",
    )
    options = parser.parse_args(arguments)
    if options.distributed:
        from ds_moe_mtl.cli.checkup import distributed_doctor

        if options.encoder is not None:
            parser.error("--distributed with an encoder; allowed: one of them")
        return answer(lambda: distributed_doctor(options.json))
    return answer(lambda: _doctor(options.encoder, options.json))


def _doctor(encoder: str | None, as_json: bool) -> int:
    found = examine() if encoder is None else examine_encoder(encoder)
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20}{value}")
    return 0


def examine_encoder(name: str) -> dict[str, str]:
    """Return findings on an encoder: what it is, what it takes, which kinds of model it can be.

    Raises UserError where no kind of model can be made of it, or its tokenizer does not fit.
    """
    from ds_moe_mtl.config.schema import ModelSection
    from ds_moe_mtl.models.encoder_check import check_encoder
    from ds_moe_mtl.models.pretrained import find_encoder, load_transformer, source_limits
    from ds_moe_mtl.models.tokenizer import load_tokenizer

    try:
        source = find_encoder(name)
        limits = source_limits(source)
        tokenizer = load_tokenizer(source.folder, limits)
        dropout = ModelSection.model_fields["dropout"].default
        model = load_transformer(source, dropout, pooler=False)
        dense = check_encoder(model, name)
    except (ValueError, OSError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    found = {
        "encoder": _told(source),
        "class": type(model).__name__,
        "weights": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "tokens": f"{len(tokenizer):,}, rows of the embedding {limits.ids:,}",
        "longest sequence": f"{tokenizer.model_max_length:,} tokens",
        "single, mt_dense": _in_words(dense.packed, dense.tolerance, "each sequence alone"),
    }
    for kind, names in (("mt_switch", "mt_switch, mt_tag"), ("task_moe", "task_moe")):
        try:
            tried = check_encoder(model, name, kind)
            found[names] = _in_words(tried.routed, tried.tolerance, "the dense encoder")
        except ValueError as error:
            found[names] = f"refused: {error}"
    return found


def _told(source) -> str:
    """Return what an encoder is and what a reader of its scores must know."""
    note = f"; {source.note}" if source.note else ""
    seen = f"; has seen data of {', '.join(source.seen_tasks)}" if source.seen_tasks else ""
    return source.resolved + note + seen


def _in_words(difference: float, tolerance: float, reference: str) -> str:
    return f"right: {difference:.1g} from {reference} (rounding: up to {tolerance:.1g})"


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
        found["minilm"] = _told(source)
    except ValueError as error:
        found["minilm"] = str(error)
    for command in ("deepspeed", "torchrun", "mpirun", "srun", "nvcc"):
        found[f"{command} command"] = shutil.which(command) or "not found"
    return found

"""ds-moe-mtl remove: a trained model without some of its tasks."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, data_root
from ds_moe_mtl.config import UserError


@dataclass(frozen=True)
class _Removal:
    """Which tasks go, and where the model without them is written."""

    folder: Path
    task: tuple[str, ...]
    output: Path
    data_root: str | None


def main(arguments: list[str]) -> int:
    """Write the smaller model and return the exit status."""
    parser = Parser(
        "remove",
        "Writes a trained model without some of its tasks: their gates and heads go, the others "
        "stay as they are, and nothing is trained.",
        "ds-moe-mtl remove runs/mine --task stars --output smaller",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--task", action="append", required=True, help="may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="a new model folder")
    parser.add_argument("--data-root", help="a local data root; default: the run's own")
    asked = parser.request(_Removal, arguments)
    return answer(lambda: _remove(asked))


def _remove(asked: _Removal) -> int:
    from ds_moe_mtl.evaluation import MultiTaskModel
    from ds_moe_mtl.export.prune import prune

    model = MultiTaskModel.from_pretrained(asked.folder)
    root = data_root(asked.data_root, asked.folder)
    names = tuple(dict.fromkeys(asked.task))
    prune(model, names, asked.output)
    kept = [name for name in model.specs if name not in names]
    print(f"{asked.output}: {len(kept)} tasks ({', '.join(kept)}), without {', '.join(names)}")
    if model.description["routing"] and model.description["routing"]["combine"] == "top1":
        _tell_unused(model, kept, root)
    return 0


def _tell_unused(model, kept: list[str], root: str | None) -> None:
    """Say which experts no task that stays uses, where the dev rows are there."""
    from ds_moe_mtl.export.prune import EXAMPLES, unused_experts

    try:
        unused = unused_experts(model, kept, root)
    except UserError as error:
        print(f"which experts are used was not looked at: {error}", file=sys.stderr)
        return
    by_layer: dict[int, list[int]] = {}
    for layer, expert in unused:
        by_layer.setdefault(layer, []).append(expert)
    shown = "; ".join(
        f"layer {layer}: {', '.join(map(str, them))}" for layer, them in by_layer.items()
    )
    print(
        f"experts that no task uses any more, by at most {EXAMPLES} dev rows a task "
        f"(numbers from 0): {shown or 'none'}"
    )

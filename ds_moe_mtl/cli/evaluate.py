"""ds-moe-mtl evaluate: score a trained model on its tasks' dev splits."""

import json
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count, data_root


@dataclass(frozen=True)
class _Evaluation:
    """What is scored. task: names, None for all; limit: examples a task, None for all."""

    folder: Path
    task: tuple[str, ...] | None
    data_root: str | None
    limit: int | None
    json: bool


def main(arguments: list[str]) -> int:
    """Print a table (or JSON) of dev scores and return the exit status."""
    parser = Parser(
        "evaluate",
        "Scores a trained model on its tasks' dev splits.",
        "ds-moe-mtl evaluate runs/embedded_mttag_minilm --task sense",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--task", action="append", help="only this task (may be repeated)")
    parser.add_argument("--data-root", help="a local data root; default: the run's own")
    parser.add_argument("--limit", type=count, help="at most so many examples a task")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.request(_Evaluation, arguments)
    return answer(lambda: _evaluate(asked))


def _evaluate(asked: _Evaluation) -> int:
    from ds_moe_mtl.evaluation import MultiTaskModel

    model = MultiTaskModel.from_pretrained(asked.folder)
    root = data_root(asked.data_root, asked.folder)
    names = [model.task(name).name for name in asked.task or model.specs]
    results = {name: model.evaluate(name, root, limit=asked.limit) for name in names}
    if asked.json:
        print(json.dumps(results))
        return 0
    for name, result in results.items():
        print(f"{name:<16}{result['metric']:<12}{result['value']:>8.1f}{result['examples']:>10,}")
    return 0

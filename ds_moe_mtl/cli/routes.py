"""ds-moe-mtl routes: which expert each task's tokens take, as a picture and as numbers."""

import json
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import Parser, answer, count, data_root
from ds_moe_mtl.config.files import write_json

PICTURE = "routes.png"
NUMBERS = "routes.json"


@dataclass(frozen=True)
class _Routes:
    """Whose routes are shown. limit: dev examples a task."""

    folder: Path
    data_root: str | None
    limit: int
    json: bool


def main(arguments: list[str]) -> int:
    """Write routes.png and routes.json and return the exit status."""
    parser = Parser(
        "routes",
        "Shows which expert each task's tokens take, layer by layer.",
        "ds-moe-mtl routes runs/embedded_mttag_minilm",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--data-root", help="a local data root; default: the run's own")
    parser.add_argument("--limit", type=count, default=200, help="dev examples a task (200)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asked = parser.request(_Routes, arguments)
    return answer(lambda: _routes(asked))


def _routes(asked: _Routes) -> int:
    root = data_root(asked.data_root, asked.folder)
    numbers = write_routes(asked.folder, root, None, asked.limit)
    if asked.json:
        print(json.dumps(numbers))
    else:
        print(f"routes: {asked.folder / PICTURE}, {asked.folder / NUMBERS}")
    return 0


def write_routes(
    folder: Path, root: str | None, cache: str | None = None, limit: int = 200
) -> dict:
    """Write both files into `folder` and return the numbers. Raises UserError for a dense model."""
    from ds_moe_mtl.analysis.routes import collect_routes, draw_routes
    from ds_moe_mtl.evaluation import MultiTaskModel

    routes = collect_routes(MultiTaskModel.from_pretrained(folder), root, cache, limit)
    draw_routes(routes, folder / PICTURE)
    numbers = routes.to_json()
    write_json(folder / NUMBERS, numbers)
    return numbers

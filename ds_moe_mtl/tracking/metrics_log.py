"""metrics.jsonl and the trackers: a row a logged step, no step twice, also after a resume."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds_moe_mtl.config.files import write_text
from ds_moe_mtl.tracking.route_image import route_image
from ds_moe_mtl.tracking.tracker import Trackers


class StepLines:
    """A file of JSON lines with a "step" each. Made on rank 0 only."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Keep the lines up to `first_step`, drop what a run that died wrote beyond it."""
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= first_step]
        self.count = len(kept)
        if kept or path.exists():
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = None

    def write(self, row: dict) -> None:
        """Append one row; the file begins with the first."""
        if self._file is None:
            self._file = self.path.open("a")
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self.count += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class MetricsLog:
    """Writes rows to metrics.jsonl and gives them to trackers. Made on rank 0 only."""

    def __init__(self, folder: Path, first_step: int, trackers: Trackers) -> None:
        """Keep the rows up to `first_step`, drop what a run that died wrote beyond it."""
        self._lines = StepLines(folder / "metrics.jsonl", first_step)
        self._trackers = trackers
        self._scores: dict[str, float] = {}

    def write(self, row: dict) -> None:
        """Append one row; it must have "step". Values that are not finite are left out: JSON
        has no word for them.
        """
        row = {key: value for key, value in row.items() if math.isfinite(value)}
        self._lines.write(row)
        values = {key: value for key, value in row.items() if key != "step"}
        self._trackers.scalars(row["step"], values)
        self._scores |= {key: value for key, value in values.items() if key.startswith("dev/")}

    def evaluated(self, step: int, shares: Mapping[str, np.ndarray]) -> None:
        """Show the trackers an evaluation's routes, by task each expert's share [L, E]; if any."""
        if shares and self._trackers.are_open:
            self._trackers.routes(step, route_image(shares), shares)

    def finish(self) -> None:
        """Give the trackers the last scores of a run that is complete."""
        self._trackers.finish(self._scores)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._lines.close()
        self._trackers.close()


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

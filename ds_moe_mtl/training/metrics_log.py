"""metrics.jsonl and tensorboard/: one line a logged step, no step twice, also after a resume."""

import json
from pathlib import Path


class MetricsLog:
    """Writes rows to metrics.jsonl and TensorBoard. Made on rank 0 only."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Keep the rows up to `first_step`, drop what a run that died wrote beyond it."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= first_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, row: dict) -> None:
        """Append one row; it must have "step"."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key != "step":
                self._board.add_scalar(key, value, row["step"])

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


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

"""Several ds-moe-mtl commands in one process of their own, so that DeepSpeed starts once."""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.launch import launch


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its status."""

    status: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """All of it, for an assertion's message."""
        return f"status {self.status}\n{self.stdout[-3000:]}\n{self.stderr[-2000:]}"


def run_commands(commands: Sequence[Sequence[object]], time_limit: float = 900) -> list[Answer]:
    """Return the answers of ds-moe-mtl's commands (without that word), run one after another."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder, "asked.json"), Path(folder, "told.json")
        asked.write_text(json.dumps([[str(word) for word in words] for words in commands]))
        run = launch([__file__, asked, told], 1, "fork", time_limit=time_limit)
        assert run.returncode == 0 and told.exists(), run.text
        return [Answer(**answer) for answer in json.loads(told.read_text())]


def _main(asked: Path, told: Path) -> None:
    from ds_moe_mtl.cli import main

    answers = []
    for words in json.loads(asked.read_text()):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(words)
            except SystemExit as exit_:
                status = int(exit_.code or 0)
        answers.append({"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()})
    told.write_text(json.dumps(answers))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # as train.py: threads that gloo leaves behind abort the shutdown

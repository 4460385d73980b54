"""What the subcommands share: a parser whose mistakes are one line, and a user's mistakes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ds_moe_mtl.config import RunConfig, UserError, load_config
from ds_moe_mtl.planner.shape import KNOWN_ENCODERS, SIZES
from ds_moe_mtl.ranks.failures import file_error_line

BAD_INPUT = 2
"""Exit status of a user's mistake."""

INTERRUPTED = 130
"""Exit status after Ctrl-C where there is nothing to keep, as a shell has it."""

PROGRAM = (sys.executable, "-m", "ds_moe_mtl")
"""The words before a subcommand that this command starts as a process of its own."""

Request = TypeVar("Request")


def repeated_key(words: Sequence[str]) -> str:
    """Return what is wrong with overrides of which two set one key, "" where none do."""
    keys = [word.partition("=")[0].strip() for word in words if "=" in word]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is None:
        return ""
    given = ", ".join(word for word in words if word.partition("=")[0].strip() == twice)
    return f"command line: {twice} is given twice ({given}); allowed: each key once"


def count(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: a whole number at least 1")
    return number


def renaming(given: str) -> tuple[str, str]:
    """Return (the task's column, the file's) of a --column. Raises UserError for another form."""
    own, equals, theirs = given.partition("=")
    if not (own and equals and theirs):
        raise UserError(f"--column: {given!r}; allowed: TASK_COLUMN=FILE_COLUMN")
    return own, theirs


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, status 2, and an example at the end of --help.

    An option is known by its whole name: a beginning of it may be another's tomorrow.
    """

    def __init__(self, command: str, purpose: str, example: str) -> None:
        super().__init__(
            prog=f"ds-moe-mtl {command}",
            description=purpose,
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        self._takes_a_run = False

    def takes_a_run(self, shape: bool = True) -> None:
        """Add what tells which run is meant: a YAML, overrides, another encoder's shape."""
        self._takes_a_run = True
        self.add_argument("config", nargs="?", help="a YAML; default: the embedded suite's")
        self.add_argument("overrides", nargs="*", help="section.key=value")
        if not shape:
            return
        self.add_argument(
            "--shape",
            choices=(*SIZES, *KNOWN_ENCODERS),
            help="random weights of this shape in the encoder's place",
        )

    def request(self, kind: Callable[..., Request], arguments: Sequence[str]) -> Request:
        """Return the command line as a `kind`: a frozen dataclass with a field for each option.

        Lists become tuples. A parser that takes a run finds that the YAML is left out where the
        first word is an override.
        """
        values = vars(self.parse_intermixed_args(arguments))
        if self._takes_a_run and values["config"] is not None and "=" in values["config"]:
            values["overrides"].insert(0, values["config"])
            values["config"] = None
        for words in values.values():
            fault = repeated_key([str(word) for word in words] if isinstance(words, list) else [])
            if fault:
                self.error(fault)
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def error(self, message: str) -> None:
        """Print one line and leave with status 2."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(BAD_INPUT)


PICTURES = (".png", ".pdf", ".svg")


def picture(text: str) -> Path:
    """Return the path of a picture to draw, for an option's `type`; its suffix is the format."""
    if Path(text).suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: a name with {', '.join(PICTURES)}")
    return Path(text)


def answer(work: Callable[[], int]) -> int:
    """Return `work`'s exit status; a user's mistake becomes one line on stderr and status 2.

    So does a file that cannot be read or written; a reader who has gone (`| head`) is no mistake.
    """
    try:
        return work()
    except UserError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        line = file_error_line(error, None)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT


def run_config(folder: Path) -> RunConfig | None:
    """Return the configuration of the run whose folder (or model/ in it) this is, or None."""
    for candidate in (folder / "config.yaml", folder.parent / "config.yaml"):
        if candidate.is_file():
            return load_config(candidate, check_files=False)
    return None


def data_root(given: str | None, folder: Path) -> str | None:
    """Return --data-root, or the root of the run that the folder belongs to (None: the Hub).

    Raises UserError for a --data-root that is not there.
    """
    if given is not None:
        if given != "embedded" and not Path(given).is_dir():
            raise UserError(f"--data-root: {given}: no such folder; allowed: a folder, or embedded")
        return given
    config = run_config(folder)
    return config.data.root if config is not None else None

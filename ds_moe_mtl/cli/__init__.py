"""The `ds-moe-mtl` command: one file a subcommand, imported when it is called."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "train": "train a run from a YAML",
    "finetune": "fine-tune one task from a trained model: grids, seeds, gates",
    "add": "train new tasks into a trained model, which keeps its own",
    "remove": "write a trained model without some of its tasks",
    "data": "show the data of a run's tasks and what is odd about it",
    "evaluate": "score a trained model on its dev or test rows, or on a file",
    "predict": "label texts with a trained model",
    "export": "write a checkpoint as a model or for other ranks",
    "report": "make a page of runs: scores, curves, mistakes, routes, experts",
    "compare": "difference of two systems' runs, with its interval",
    "study": "queue of runs that are compared, a line of evidence each",
    "reproduce": "run a table of the paper and print it beside the paper's",
    "routes": "show which expert each task uses",
    "crossfit": "few-shot tasks: vectors, tuning, routes, the study",
    "plan": "memory, traffic and step time of a run before it runs",
    "bench": "time sparse against dense models",
    "tasks": "list the tasks that are known",
    "doctor": "check what this machine can run",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit status; without one, list them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        from ds_moe_mtl.cli.arguments import answer

        return answer(lambda: _about("--version" in arguments))
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(
            f"error: unknown command {name!r}; allowed: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    return import_module(f"ds_moe_mtl.cli.{name}").main(rest)


def _about(version_alone: bool) -> int:
    lines = [version_line()]
    if not version_alone:
        lines = [f"  {name:<11}{purpose}" for name, purpose in COMMANDS.items()]
        lines[:0] = ["usage: ds-moe-mtl COMMAND ... (each has --help), ds-moe-mtl --version", ""]
    print("\n".join(lines))
    return 0


def version_line() -> str:
    """Return the package's name and version, as --version prints them."""
    try:
        return f"ds-moe-mtl {version('ds-moe-mtl')}"
    except PackageNotFoundError:
        return "ds-moe-mtl (run from its sources; pip has not installed it)"

"""ds-moe-mtl crossfit: task vectors, few-shot tuning, routes, the study of task-level experts."""

import json
from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.cli.arguments import PROGRAM, Parser, answer, run_config
from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_json

USAGE = """usage: ds-moe-mtl crossfit vectors | tune | routes | study ... (each has --help)

  vectors   write task vectors from text or from Fisher information
  tune      tune unseen tasks on a few examples, from an upstream run or directly
  routes    draw which experts each task takes, and say whether the routes collapsed
  study     learned against random, average and vanilla routing, upstream and on unseen tasks

example: ds-moe-mtl crossfit study crossfit_router_minilm data.root=DATA --output runs/study"""


def main(arguments: list[str]) -> int:
    """Run a part and return the exit status."""
    parts = {"vectors": _vectors, "tune": _tune, "routes": _routes, "study": _study}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] not in parts:
        return answer(lambda: _unknown(arguments[0], parts))
    return parts[arguments[0]](arguments[1:])


def _unknown(part: str, parts) -> int:
    raise UserError(f"unknown part {part!r} of crossfit; allowed: {', '.join(parts)}")


@dataclass(frozen=True)
class _Vectors:
    """Of which tasks vectors are made. more: tasks beside the run's; steps: of kind fisher."""

    config: str
    overrides: tuple[str, ...]
    kind: str
    more: tuple[str, ...]
    steps: int
    output: Path


def _vectors(arguments: list[str]) -> int:
    parser = Parser(
        "crossfit vectors",
        "Writes a vector for each task of a run, and for further ones, from their training rows.",
        "ds-moe-mtl crossfit vectors crossfit_router_minilm data.root=DATA --output vectors.npz",
    )
    parser.add_argument("config", help="a run's YAML")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--kind", choices=("text", "fisher"), default="text")
    parser.add_argument("--more", nargs="*", default=["gym_unseen"], help="further tasks")
    parser.add_argument("--steps", type=int, default=2500, help="fisher: steps a task (2500)")
    parser.add_argument("--output", type=Path, required=True, help="an .npz")
    asked = parser.request(_Vectors, arguments)
    return answer(lambda: _write_vectors(asked))


def _write_vectors(asked: _Vectors) -> int:
    import torch

    from ds_moe_mtl.config import load_config
    from ds_moe_mtl.engine.engine import device_type
    from ds_moe_mtl.models.task_fit import head_specs
    from ds_moe_mtl.ranks.machine import device_name
    from ds_moe_mtl.studies.crossfit import task_vectors
    from ds_moe_mtl.tasks import expand_tasks, get_task
    from ds_moe_mtl.training.plan import make_plan, task_specs

    if asked.steps < 1:
        raise UserError(f"--steps: {asked.steps}; allowed: at least 1")
    config = load_config(asked.config, asked.overrides)
    device = torch.device(device_type())
    print(f"device: {device_name(device)}")
    named = [get_task(name) for name in expand_tasks(asked.more)]
    specs = list({spec.name: spec for spec in (*task_specs(config), *named)}.values())
    plan = make_plan(config, specs, lambda line: None)
    if asked.kind == "text":
        vectors = task_vectors.text_vectors(plan.source, plan.train, device)
    else:
        seed = config.run.seed
        vectors = task_vectors.fisher_vectors(
            plan.source, head_specs(specs), plan.train, asked.steps, seed, print, device
        )
    task_vectors.save_vectors(asked.output, specs, vectors)
    print(f"{len(specs)} vectors of {vectors.shape[1]} numbers: {asked.output}")
    return 0


@dataclass(frozen=True)
class _Tuning:
    """What is tuned, as it is typed; see studies.crossfit.tune.FewShot."""

    upstream: str
    output: Path
    encoder: str
    tasks: tuple[str, ...]
    sample: int
    seed: int
    routes: str
    steps: int
    rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    clip: float
    precision: str
    max_length: int | None
    test_limit: int | None
    data_root: str | None
    cache: str | None

    def __post_init__(self) -> None:
        """Raise UserError for a number out of its range."""
        if self.steps < 1 or not self.rates or min(self.batch_sizes, default=0) < 1:
            raise UserError(
                "--steps, --rates, --batch-sizes: allowed: at least one, each at least 1"
            )
        if min(self.rates) <= 0:
            raise UserError(f"--rates: {min(self.rates):g}; allowed: above 0")
        least = {"clip": 0, "seed": 0, "test_limit": 1, "max_length": 8}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                option = name.replace("_", "-")
                raise UserError(f"--{option}: {value:g}; allowed: at least {lowest}")


def _tune(arguments: list[str]) -> int:
    parser = Parser(
        "crossfit tune",
        "Tunes unseen tasks on 16 examples each; a line of JSON a task, done ones are skipped.",
        "ds-moe-mtl crossfit tune runs/upstream --sample 13 --output tuned.jsonl",
    )
    parser.add_argument("upstream", help="a run's or model's folder; or direct: the encoder")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl")
    parser.add_argument("--encoder", default="minilm", help="of direct fine-tuning (minilm)")
    parser.add_argument("--tasks", nargs="*", default=["gym_unseen"])
    parser.add_argument("--sample", type=int, default=13, help="few-shot sample: 13 21 42 87 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routes", default="vector", help="nearest, vector or learned")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-5, 2e-5, 5e-5])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--clip", type=float, default=0.1, help="0: none")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--max-length", type=int, help="tokens; default: the task's own")
    parser.add_argument("--test-limit", type=int, help="test examples a task; default: all")
    parser.add_argument("--data-root", help="default: the upstream run's own")
    parser.add_argument("--cache", help="of tokenised sets; default: the upstream run's own")
    return answer(lambda: _tune_all(parser.request(_Tuning, arguments)))


def _tune_all(asked: _Tuning) -> int:
    from ds_moe_mtl.studies.crossfit.fewshot import Tuning
    from ds_moe_mtl.studies.crossfit.tune import DIRECT, FewShot, tune_tasks

    run = None if asked.upstream == DIRECT else run_config(Path(asked.upstream))
    tuning = Tuning(
        steps=asked.steps,
        rates=asked.rates,
        batch_sizes=asked.batch_sizes,
        clip=asked.clip,
        routes=asked.routes,
        precision=asked.precision,
    )
    job = FewShot(
        upstream=asked.upstream,
        output=asked.output,
        tasks=asked.tasks,
        tuning=tuning,
        root=asked.data_root or (run.data.root if run is not None else None),
        encoder=asked.encoder,
        cache=asked.cache or (run.data.cache if run is not None else None),
        vectors=run.router.vectors if run is not None else None,
        sample=asked.sample,
        seed=asked.seed,
        max_length=asked.max_length,
        test_limit=asked.test_limit,
    )
    tune_tasks(job, lambda line: print(line, flush=True))
    return 0


@dataclass(frozen=True)
class _Routes:
    """Whose routes are drawn."""

    folder: Path
    json: bool


def _routes(arguments: list[str]) -> int:
    parser = Parser(
        "crossfit routes",
        "Draws task_routes.png and writes task_routes.json: routes, specialisation, collapse.",
        "ds-moe-mtl crossfit routes runs/crossfit_router_minilm",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asked = parser.request(_Routes, arguments)
    return answer(lambda: _draw_routes(asked))


def _draw_routes(asked: _Routes) -> int:
    folder = asked.folder
    numbers = write_task_routes(folder, folder)
    if asked.json:
        print(json.dumps(numbers))
        return 0
    levels = ", ".join(f"{value:.2f}" for value in numbers["specialisation"])
    print(f"specialisation by layer: {levels} (0: every task alike, 1: experts of their own)")
    print(f"collapsed layers: {100 * numbers['collapsed_layers']:.0f}%")
    print(f"routes: {folder / 'task_routes.png'}, {folder / 'task_routes.json'}")
    return 0


def write_task_routes(folder: Path, output: Path) -> dict:
    """Write task_routes.png and .json of a task_moe model into `output`; return the numbers."""
    from ds_moe_mtl.analysis.task_routes import draw_task_routes, model_routes
    from ds_moe_mtl.evaluation import MultiTaskModel
    from ds_moe_mtl.tasks.text2text import category

    routes = model_routes(MultiTaskModel.from_pretrained(folder, "cpu"))
    draw_task_routes(routes, [category(task) for task in routes.tasks], output / "task_routes.png")
    numbers = routes.to_json()
    write_json(output / "task_routes.json", numbers)
    return numbers


def _study(arguments: list[str]) -> int:
    from ds_moe_mtl.studies.crossfit.study import STEPS, SYSTEMS, Study

    parser = Parser(
        "crossfit study",
        "Trains vanilla, average, random and learned task-level routing on the upstream tasks, "
        "tunes all of them on the unseen ones, and reports. Started again it goes on.",
        "ds-moe-mtl crossfit study crossfit_router_minilm data.root=DATA --output runs/study",
    )
    parser.add_argument("config", help="the YAML of stage 1 of the learned router")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for every system")
    parser.add_argument("--output", type=Path, required=True, help="the study's folder")
    parser.add_argument("--seeds", type=int, default=3, help="how many, 5 at most (3)")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), help=", ".join(SYSTEMS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    parser.add_argument("--routes", default="vector", help="of unseen tasks, where learned")
    parser.add_argument("--tune-steps", type=int, default=STEPS, help=f"a task ({STEPS})")
    parser.add_argument(
        "--tune-lr",
        type=float,
        nargs="+",
        default=[1e-4],
        help="rates that are tried on each task, the best by its dev rows is scored (1e-4)",
    )
    parser.add_argument("--test-limit", type=int, default=200, help="test examples a task (200)")
    study = parser.request(Study, arguments)
    return answer(lambda: _run_study(study))


def _run_study(study) -> int:
    from ds_moe_mtl.studies.crossfit.report import write_report
    from ds_moe_mtl.studies.crossfit.study import run_study

    status, layout = run_study(study, PROGRAM, lambda line: print(line, flush=True))
    if status:
        return status
    text = write_report(layout, write_task_routes)
    print(text)
    print(f"report: {study.output / 'report.md'}")
    return 0

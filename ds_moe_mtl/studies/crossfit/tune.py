"""Few-shot tuning of many tasks into one file: a line a task, what is done is not done again."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import write_text
from ds_moe_mtl.data import encode_task
from ds_moe_mtl.engine.engine import device_type
from ds_moe_mtl.models import build_network
from ds_moe_mtl.models.pretrained import (
    find_encoder,
    load_transformer,
    source_limits,
    trained_source,
)
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.models.tokenizer import load_tokenizer
from ds_moe_mtl.ranks.machine import device_name
from ds_moe_mtl.studies.crossfit.fewshot import (
    Tuning,
    for_new_task,
    router_for,
    tune_task,
    upstream_network,
)
from ds_moe_mtl.tasks import TaskSpec, expand_tasks, get_task
from ds_moe_mtl.tasks.text2text import SEEDS, of_seed, on_test

DIRECT = "direct"
DROPOUT = 0.1


@dataclass(frozen=True)
class FewShot:
    """Which tasks are tuned, from what, on which few examples.

    upstream: a folder, or "direct" for `encoder` alone. output: a .jsonl. root and cache: of the
    data. vectors: the upstream run's task vectors. sample: the seed of the few-shot sample. seed:
    of heads, order and dropout. max_length: tokens, None for the task's own. test_limit: examples
    a task, None for all.
    """

    upstream: str
    output: Path
    tasks: tuple[str, ...]
    tuning: Tuning
    root: str | None
    encoder: str = "minilm"
    cache: str | None = None
    vectors: str | None = None
    sample: int = 13
    seed: int = 0
    max_length: int | None = None
    test_limit: int | None = None


def tune_tasks(job: FewShot, say: Callable[[str], None]) -> list[dict]:
    """Tune each task and return all rows of job.output.

    Raises UserError, one line, for what the user can mend.
    """
    tuning = job.tuning
    specs = [get_task(name) for name in expand_tasks(job.tasks)]
    for spec in specs:
        if spec.kind != "options":
            raise UserError(
                f"--tasks: {spec.name} has no answer options; an encoder scores options"
            )
    if job.sample not in SEEDS:
        raise UserError(f"--sample: {job.sample}; allowed: {', '.join(map(str, SEEDS))}")
    settings = {
        "upstream": job.upstream,
        "sample": job.sample,
        "seed": job.seed,
        "max_length": job.max_length,
        "test_limit": job.test_limit,
        **{key: _plain(value) for key, value in asdict(tuning).items()},
    }
    rows = read_rows(job.output, settings)
    done = {row["task"] for row in rows}
    tokenizer = _tokenizer(job.upstream, job.encoder)
    device = torch.device(device_type())
    say(f"device: {device_name(device)}")
    for spec in specs:
        if spec.name in done:
            continue
        began = time.perf_counter()
        splits = _splits(spec, tokenizer, job)
        network = _network(spec, job).to(device)
        result = tune_task(network, spec, splits, tuning, job.seed)
        seconds = round(time.perf_counter() - began, 1)
        row = {"task": spec.name, **result, "seconds": seconds, "settings": settings}
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        say(f"{spec.name}: {row['metric']} {row['value']:.1f} ({seconds:.0f} s)")
    return rows


def read_rows(path: Path, settings: dict | None = None) -> list[dict]:
    """Return the finished rows of a file; a line that was cut off does not count.

    Raises UserError where the file was made with other settings.
    """
    rows = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise UserError(f"{path}:{number + 1}: not a line of results") from None
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        different = [
            key for key, value in (settings or {}).items() if row["settings"][key] != value
        ]
        if different:
            raise UserError(
                f"--output: {path} was made with another {', '.join(different)}; allowed: the "
                f"same, or another file"
            )
    return rows


def _splits(spec: TaskSpec, tokenizer, job: FewShot):
    """Return train and dev of the sample, and the task's test rows."""
    few = of_seed(spec, job.sample)
    data = (tokenizer, job.root, job.cache, job.max_length)
    return (
        encode_task(few, "train", *data),
        encode_task(few, "dev", *data),
        encode_task(on_test(few), "dev", *data, job.test_limit),
    )


def _network(spec: TaskSpec, job: FewShot):
    torch.manual_seed(job.seed)
    head = head_specs([spec])[0]
    if job.upstream == DIRECT:
        transformer = load_transformer(_source(job.encoder), DROPOUT, False)
        return build_network(transformer, "mt_dense", [head], DROPOUT)
    network, description = upstream_network(Path(job.upstream))
    seen = [task["name"] for task in description["tasks"]]
    if spec.name in seen:
        raise UserError(f"--tasks: {spec.name} is an upstream task of {job.upstream}")
    router = router_for(network.router, seen, spec.name, job.tuning.routes, job.vectors, job.seed)
    return for_new_task(network, head, router)


def _tokenizer(upstream: str, encoder: str):
    try:
        source = _source(encoder) if upstream == DIRECT else trained_source(Path(upstream))
        return load_tokenizer(source.folder, source_limits(source))
    except ValueError as error:
        raise UserError(str(error)) from error


def _source(encoder: str):
    try:
        return find_encoder(encoder)
    except ValueError as error:
        raise UserError(str(error)) from error


def _plain(value):
    return list(value) if isinstance(value, tuple) else value

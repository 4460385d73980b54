"""The data of a run's tasks as the run would read it, surveyed without its encoder's weights."""

from collections.abc import Callable, Iterator, Sequence

from ds_moe_mtl.config import RunConfig
from ds_moe_mtl.data import CheckedTask, split_rows
from ds_moe_mtl.data.survey import survey
from ds_moe_mtl.training.plan import encoded_splits, fitted


def surveys(
    config: RunConfig, tasks: Sequence[CheckedTask], say: Callable[[str], None]
) -> Iterator[dict]:
    """Yield each task's survey (data.survey) in order; tokenises what is not in the cache yet.

    Raises UserError for an encoder whose tokenizer cannot be had.
    """
    _, tokenizer, specs = fitted(config, [task.spec for task in tasks], say)
    train, data = config.train, config.data
    sample = (data.sample, data.sample_seed) if data.sample else None
    for task, spec in zip(tasks, specs, strict=True):
        encoded = encoded_splits(config, spec, tokenizer)
        named = zip(("train", "dev", "test"), encoded, strict=True)
        splits = {name: split for name, split in named if split is not None}
        chosen = {
            "train": (train.limit_examples, config.run.seed, sample),
            "dev": (train.limit_dev, config.run.seed),
            "test": (),
        }
        rows = {name: split_rows(spec, name, data.root, *chosen[name]) for name in splits}
        found = survey(task._replace(spec=spec), splits, rows, tokenizer)
        for name, limit in (("train", train.limit_examples), ("dev", train.limit_dev)):
            if limit is not None and found["rows"][name]["examples"] >= limit:
                found["rows"][name]["limit"] = limit
        yield found

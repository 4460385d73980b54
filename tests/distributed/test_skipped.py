"""Steps with a NaN on one rank: skipped on all, named, counted, and the end of too many."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from ds_moe_mtl.config import UserError, dump_config
from ds_moe_mtl.moe.convert import is_expert_key
from ds_moe_mtl.tracking.metrics_log import read_metrics
from tests.support.launch import ROOT, launch, run_ranks
from tests.support.steps import start_tiny
from tests.support.tiny import tiny_config, write_tiny

BAD_STEP, BAD_RANK = 3, 1  # the step as it is logged, from 1
ALWAYS = -1
# ZeRO stage, precision, ep_size, accumulation
CASES = [
    (0, "fp32", 1, 1),
    (0, "fp32", 2, 2),
    (1, "fp32", 1, 1),
    (1, "fp32", 2, 1),
    (2, "fp32", 2, 2),
    (1, "bf16", 1, 1),
    (2, "bf16", 2, 1),
]


class NaNLabels:
    """A loader with NaN on BAD_RANK: the scores of "amount" in BAD_STEP, or always a weight."""

    def __init__(self, loader, rank: int, when: int) -> None:
        self.loader, self.rank, self.when = loader, rank, when
        self.stall_seconds = self.attention_padding = 0.0
        self.close = loader.close
        self.planted: list[int] = []

    def __iter__(self):
        for step, (micro_batches, examples) in enumerate(self.loader, start=1):
            if self.when == ALWAYS and self.rank == BAD_RANK:
                micro_batches[0].weights_B[:1] = torch.nan
            if self.when == step and self.rank == BAD_RANK:
                for batch in micro_batches:
                    scores_B = batch.task_ids_B == 2
                    batch.labels_B[scores_B] = torch.nan
                    self.planted += batch.example_ids_B[scores_B].tolist()
            yield micro_batches, examples


def nan_on_one_rank(folder: str, cases: list) -> list[dict]:
    """Return, for each case, weights and moments after every step, and what was logged."""
    results = []
    for stage, precision, ep_size, accumulation in cases:
        clip = 0.0 if stage == 0 and ep_size > 1 else 1.0
        sections = {
            "moe": {"ep_size": ep_size},
            "train": {
                **{"precision": precision, "accumulation": accumulation, "clip": clip},
                **{"steps": 5, "save_every": 1, "batch_size": 12},
            },
        }
        run = start_tiny(folder, sections, ROOT / f"ds_configs/deepspeed/zero{stage}.json")
        loader = run.loader = NaNLabels(run.loader, dist.get_rank(), BAD_STEP)
        after, said = [], []

        def record(step, engine=run.engine, after=after):
            optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
            moments = [
                value.clone()
                for state in optimizer.state.values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            ]
            weights = {k: v.detach().clone() for k, v in engine.module.state_dict().items()}
            counted = (engine.global_steps, engine.skipped_steps)
            after.append({"weights": weights, "moments": moments, "counted": counted})

        run.save = record
        run.skipped.say = said.append
        run.go()
        lines = Path(folder, f"skipped{dist.get_rank()}.jsonl").read_text()
        results.append(
            {
                "after": after,
                "said": said,
                "rows": list(run.rows),
                "lines": [json.loads(line) for line in lines.splitlines()],
                "planted": loader.planted,
            }
        )
    return results


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("skipped"))


@pytest.fixture(scope="module")
def results(tiny):
    return run_ranks(nan_on_one_rank, str(tiny), CASES, ranks=2, time_limit=240)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_nan_on_one_rank_leaves_weights_and_moments_of_all_as_they_were(results, case):
    for rank in (0, 1):
        after = results[rank][case]["after"]
        assert [entry["counted"] for entry in after] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
        before, bad, healed = after[BAD_STEP - 2 : BAD_STEP + 1]
        assert bad["moments"] and len(bad["moments"]) == len(before["moments"])
        assert all(map(torch.equal, bad["moments"], before["moments"]))
        for name, weight in bad["weights"].items():
            assert torch.equal(weight, before["weights"][name]), name
        assert all(torch.isfinite(weight).all() for weight in healed["weights"].values())
        moved = [
            name
            for name, weight in healed["weights"].items()
            if not torch.equal(weight, bad["weights"][name])
        ]
        assert any(map(is_expert_key, moved)) and not all(map(is_expert_key, moved))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_ranks_share_their_weights_after_a_skipped_step(results, case):
    ep_size = CASES[case][2]
    for first, second in zip(*(results[rank][case]["after"] for rank in (0, 1)), strict=True):
        for name, weight in first["weights"].items():
            if ep_size == 1 or not is_expert_key(name):
                assert torch.equal(weight, second["weights"][name]), name


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_skipped_step_is_written_with_the_examples_whose_loss_was_nan(results, case):
    planted = sorted(results[BAD_RANK][case]["planted"])
    assert planted
    for rank in (0, 1):
        result = results[rank][case]
        assert result["lines"] == [
            {"step": BAD_STEP, "reason": "loss", "examples": {"amount": planted}}
        ]
        shown = ", ".join(map(str, planted))
        assert result["said"] == [f"step {BAD_STEP} skipped: non-finite loss of amount {shown}"]
        logged = {row["step"]: row for row in result["rows"] if "loss" in row or "lr" in row}
        json.dumps(list(logged.values()), allow_nan=False)
        bad = logged.pop(BAD_STEP)
        assert "loss" not in bad and "grad_norm" not in bad and bad["skipped"] == 1
        assert all("loss" in row and "grad_norm" in row for row in logged.values())
        assert [row.get("skipped") for row in logged.values()] == [None, None, 1, 1]


def nan_for_ever(folder: str, ways: list[str]) -> list[tuple[str, list, int]]:
    """Return each way's error, lines and steps, under a limit of two skipped steps in a row."""
    ends = []
    for way in ways:
        sections = {"train": {"steps": 9, "max_skipped": 2}}
        run = start_tiny(folder, sections, ROOT / "ds_configs/deepspeed/zero1.json")
        if way == "labels":
            run.loader = NaNLabels(run.loader, dist.get_rank(), ALWAYS)
        else:  # a finite loss whose gradient is not
            weight = next(run.engine.module.parameters())
            weight.register_hook(lambda gradient: gradient * torch.inf)
        with pytest.raises(UserError) as ended:
            run.go()
        lines = Path(folder, f"skipped{dist.get_rank()}.jsonl").read_text().splitlines()
        ends.append((str(ended.value), list(map(json.loads, lines)), run.engine.global_steps))
    return ends


def test_too_many_skipped_steps_in_a_row_end_the_run_on_all_ranks_with_one_line(tiny):
    for ends in run_ranks(nan_for_ever, str(tiny), ["labels", "gradients"], ranks=2):
        for (error, lines, steps), reason in zip(ends, ("loss", "gradient"), strict=True):
            assert steps == 3 and "\n" not in error
            assert "skipped.jsonl" in error and "train.max_skipped = 2" in error
            assert [(line["step"], line["reason"]) for line in lines] == [
                (step, reason) for step in (1, 2, 3)
            ]
            named = 1 if reason == "loss" else 6  # of a gradient: the whole super-batch
            assert all(sum(map(len, line["examples"].values())) == named for line in lines)


def test_losses_beyond_float32_end_train_py_with_one_line_and_no_step_twice(tmp_path):
    tiny = write_tiny(tmp_path / "tiny")
    (task,) = [
        row for row in json.loads((tiny / "tasks.json").read_text()) if "amount" in row["name"]
    ]
    head, *rows = Path(task["train"]).read_text().splitlines()
    scores = [f"{row.rpartition(',')[0]},{number}e30" for number, row in enumerate(rows, 1)]
    Path(task["train"]).write_text("\n".join([head, *scores]) + "\n")  # their squares are infinite
    run = {"dir": str(tmp_path / "run")}
    train = {"steps": 9, "max_skipped": 2, "save_every": 1}
    config = tiny_config(tiny, run=run, tasks=[task], train=train)
    yaml = tmp_path / "run.yaml"
    yaml.write_text(dump_config(config))
    for count in (1, 2):  # the second start continues after step 2
        result = launch([ROOT / "train.py", yaml], 2, "fork")
        assert result.returncode == 2, result.text
        (error,) = result.stderr.strip().splitlines()
        assert error.startswith("error: 3 steps in a row") and "run/skipped.jsonl" in error
        text = (tmp_path / "run/skipped.jsonl").read_text()
        steps = [json.loads(line)["step"] for line in text.splitlines()]
        assert steps == list(range(1, 2 * count + 2))
        rows = read_metrics(tmp_path / "run/metrics.jsonl")
        assert [(row["step"], row["skipped"]) for row in rows] == [
            (step, step) for step in range(1, 2 * count + 1)
        ]
        assert not any("loss" in row for row in rows)

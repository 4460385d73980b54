"""Super-batches over ranks, positions and resume, evaluation batches, padding on real data."""

import dataclasses
import itertools
import subprocess
import sys
import threading

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.schema import MixtureSection
from ds_moe_mtl.data import SuperBatches, encode_task, evaluation_batches
from ds_moe_mtl.data.loader import deal
from ds_moe_mtl.tasks import expand_tasks, get_task
from tests.support.launch import rank_environ
from tests.support.paths import minilm_tokenizer, shared_data
from tests.support.splits import spec_of_size, split_of_lengths

SPLITS = [split_of_lengths(range(3, 40)), split_of_lengths([9, 4] * 12, per_example=2)]
SPECS = [spec_of_size("single"), spec_of_size("pairs")]


def loader(batch_size=8, seed=0, rank=0, world_size=1, accumulation=1, **mixture):
    return SuperBatches(
        SPLITS,
        SPECS,
        MixtureSection(**mixture),
        batch_size,
        seed,
        rank,
        world_size,
        accumulation,
        total_steps=100,
    )


def take(batches, count):
    """(task, sequence) of every micro-batch, and the examples, of the next steps."""
    steps = [
        ([contents(batch) for batch in micro_batches], examples)
        for micro_batches, examples in itertools.islice(batches, count)
    ]
    return steps


def contents(batch):
    return list(zip(batch.task_ids_B.tolist(), batch.example_ids_B.tolist(), strict=True))


@pytest.mark.parametrize("world_size, accumulation", [(2, 1), (4, 1), (2, 2), (1, 3), (16, 1)])
@pytest.mark.parametrize("sampling", ["natural", "uniform"])
def test_super_batches_are_the_same_for_any_number_of_ranks(world_size, accumulation, sampling):
    alone = take(loader(sampling=sampling), 9)
    ranks = [
        take(loader(8, 0, rank, world_size, accumulation, sampling=sampling), 9)
        for rank in range(world_size)
    ]
    for step, (parts, examples) in enumerate(alone):
        shares = [share for rank in ranks for share in rank[step][0]]
        assert len(shares) == world_size * accumulation
        assert sorted(itertools.chain(*shares)) == sorted(parts[0])
        assert {rank[step][1] for rank in ranks} == {examples}


def test_both_choices_of_a_question_stay_together_and_count_as_one_example():
    for micro_batches, examples in itertools.islice(loader(rank=1, world_size=2), 8):
        (batch,) = micro_batches
        examples_here = {
            (task, int(SPLITS[task].questions[sequence])) for task, sequence in contents(batch)
        }
        assert batch.weights_B.sum() == len(examples_here)
        for task, sequence in contents(batch):
            assert task == 0 or (1, sequence ^ 1) in contents(batch)
        assert examples == 8 or examples == (37 + 12) % 8


@pytest.mark.parametrize(("sampling", "most"), [("natural", 37 + 12), ("uniform", 60)])
def test_no_step_of_one_pass_has_more_examples_than_the_pass(sampling, most):
    batches = loader(60, sampling=sampling)
    assert batches.most_examples == most
    assert [examples for _, examples in take(batches, 2)] == [most, most]


def test_a_step_counts_the_examples_of_all_ranks():
    total = sum(examples for _, examples in take(loader(rank=3, world_size=4), 7))
    assert total == 37 + 12


@pytest.mark.parametrize("sampling", ["natural", "uniform", "uniform_then_natural"])
def test_a_loader_goes_on_where_its_state_says(sampling):
    whole = take(loader(sampling=sampling), 12)
    first = loader(sampling=sampling)
    assert take(first, 5) == whole[:5]
    second = loader(sampling=sampling)
    second.load_state_dict(first.state_dict())
    assert take(second, 7) == whole[5:]


def test_the_state_counts_what_was_consumed_not_what_was_built_ahead():
    batches = loader()
    iterator = iter(batches)
    next(iterator)
    assert batches.state_dict()["step"] == 1
    next(iterator)
    assert batches.state_dict()["step"] == 2
    iterator.close()


def test_a_new_iteration_goes_on_from_what_was_consumed():
    batches = loader()
    assert take(batches, 3) + take(batches, 3) == take(loader(), 6)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 16}, "batch_size"),
        ({"sampling": "uniform"}, "mixture.sampling natural, this run has uniform"),
        ({"batching": "homogeneous"}, "mixture.batching"),
    ],
)
def test_the_state_of_another_run_is_refused(change, name):
    with pytest.raises(UserError, match=f"run.resume: the checkpoint's loader has {name}"):
        loader(**change).load_state_dict(loader().state_dict())


def test_an_error_while_building_reaches_the_one_who_iterates():
    batches = loader()
    batches.encoded = batches.encoded[:1]
    with pytest.raises(IndexError):
        take(batches, 3)


def test_a_closed_loader_leaves_no_thread_behind():
    before = threading.active_count()
    batches = loader()
    steps = iter(batches)
    next(steps)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    next(iter(loader()))  # an iterator that nobody holds is closed with what it started
    assert threading.active_count() == before


def test_a_loader_that_nobody_closes_does_not_keep_the_interpreter(root):
    program = (
        "from tests.unit.data.test_loader import loader\n"
        "steps = iter(loader())\n"
        "next(steps)\n"
        "raise SystemExit(3)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=rank_environ(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3 and run.stderr == "", run.stderr


def test_dealing_balances_tokens():
    tokens = [128, 128, 100, 64, 40, 33, 20, 20, 10, 9, 8, 8, 7]
    loads = [sum(tokens[i] for i in share) for share in deal(tokens, 2)]
    assert max(loads) - min(loads) <= max(tokens) / 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_gives_every_sequence_once_and_every_rank_as_many_batches(world_size):
    for task, split in enumerate(SPLITS):
        ranks = [
            evaluation_batches(split, task, rank, world_size, 60) for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        rows = [pair for batches in ranks for batch in batches for pair in contents(batch)]
        assert sorted(rows) == [(task, row) for row in range(split.num_sequences)]
        assert all(batch.num_tokens <= 60 for batches in ranks for batch in batches)


def test_evaluation_keeps_the_sequences_of_a_question_together():
    batches = evaluation_batches(SPLITS[1], 1, tokens_per_batch=30)
    homes = [{row // 2 for _, row in contents(batch)} for batch in batches]
    assert sum(map(len, homes)) == 12


def test_an_example_longer_than_the_limit_is_a_batch_of_its_own():
    batches = evaluation_batches(split_of_lengths([50, 5, 4]), 0, tokens_per_batch=10)
    assert [contents(batch) for batch in batches] == [[(0, 0)], [(0, 1), (0, 2)]]


@pytest.mark.parametrize("batch_size, world_size", [(32, 1), (128, 1), (128, 4)])
def test_attention_padding_on_the_glue_mixture_stays_under_a_quarter(
    batch_size, world_size, tmp_path_factory
):
    root = str(shared_data())
    cache = tmp_path_factory.getbasetemp() / "glue"
    specs = [get_task(name) for name in expand_tasks(["glue"])]
    # 1,000 rows a task; the mixture's proportions are the published ones.
    splits = [
        encode_task(spec, "train", minilm_tokenizer(), root, cache, limit=1000) for spec in specs
    ]
    mixture = MixtureSection(sizes="published")
    batches = SuperBatches(splits, specs, mixture, batch_size, world_size=world_size)
    groups = [len(part[0].groups) for part, _ in itertools.islice(batches, 50)]
    assert 0 < batches.attention_padding < 0.25
    assert sum(groups) / len(groups) < 7


class EndsTheThread:
    """Labels whose row `fatal` ends the thread that reads it: nothing to hand over."""

    def __init__(self, labels, fatal, how):
        self.labels, self.fatal, self.how = labels, fatal, how

    def __getitem__(self, rows):
        if self.fatal in rows:
            raise self.how
        return self.labels[rows]

    def __len__(self):
        return len(self.labels)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("how", "raised", "words"),
    [
        (SystemExit(), RuntimeError, "rank 1: the thread that builds batches died before step"),
        (OSError("the disk is gone"), OSError, "the disk is gone"),
    ],
)
def test_a_builder_that_dies_ends_the_training_after_what_it_had_built(how, raised, words):
    batches = loader(rank=1, world_size=2)
    expected = take(loader(rank=1, world_size=2), 30)
    fatal = next(row for step, _ in expected[3:] for task, row in step[0] if task == 0)
    first = next(n for n, (step, _) in enumerate(expected) if (0, fatal) in step[0])
    split = batches.encoded[0]
    batches.encoded[0] = dataclasses.replace(split, labels=EndsTheThread(split.labels, fatal, how))
    got = []
    with pytest.raises(raised, match=words):
        for micro_batches, examples in batches:
            got.append(([contents(batch) for batch in micro_batches], examples))
    assert got == expected[:first]

"""Sampling rates, and what makes up a super-batch."""

from collections import Counter
from dataclasses import replace

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.schema import MixtureSection
from ds_moe_mtl.data import sampling_rates
from ds_moe_mtl.data.mixture import ExampleOrder
from ds_moe_mtl.tasks import expand_tasks, get_task
from tests.support.splits import spec_of_size


def order_of(counts, batch_size, total_steps=0, seed=0, published=(), **mixture):
    sizes = published or [0] * len(counts)
    specs = [spec_of_size(f"task{i}", size) for i, size in enumerate(sizes)]
    return ExampleOrder(MixtureSection(**mixture), specs, counts, batch_size, seed, total_steps)


def super_batches(order, steps):
    position, batches = order.start, []
    for _ in range(steps):
        pairs, position = order.super_batch(position)
        batches.append(pairs)
    return batches


def test_natural_rates_of_published_sizes_are_the_papers_proportions():
    specs = [get_task(name) for name in expand_tasks(["glue"])]
    rates = sampling_rates(MixtureSection(sizes="published"), specs, [10] * 8)
    sizes = [2_490, 3_668, 5_749, 8_551, 67_349, 104_743, 363_846, 392_702]
    assert rates == pytest.approx([size / sum(sizes) for size in sizes])


def test_natural_rates_of_loaded_sizes_follow_what_is_loaded():
    specs = [get_task("rte"), get_task("mnli")]
    assert sampling_rates(MixtureSection(), specs, [30, 10]).tolist() == [0.75, 0.25]


def test_a_task_of_unknown_published_size_counts_with_its_loaded_one():
    specs = [spec_of_size("known", 300), spec_of_size("own")]
    rates = sampling_rates(MixtureSection(sizes="published"), specs, [5, 100])
    assert rates.tolist() == [0.75, 0.25]


def test_uniform_and_temperature_rates():
    specs = [spec_of_size("a"), spec_of_size("b")]
    assert sampling_rates(MixtureSection(sampling="uniform"), specs, [90, 10]).tolist() == [0.5] * 2
    warm = MixtureSection(sampling="temperature", temperature=2.0)
    assert sampling_rates(warm, specs, [90, 10]) == pytest.approx([0.75, 0.25])


def test_rates_are_uniform_first_and_natural_after():
    mixture = MixtureSection(sampling="uniform_then_natural", uniform_fraction=0.25)
    specs = [spec_of_size("a"), spec_of_size("b")]
    assert sampling_rates(mixture, specs, [90, 10], 0.24).tolist() == [0.5, 0.5]
    assert sampling_rates(mixture, specs, [90, 10], 0.25).tolist() == [0.9, 0.1]


def test_a_task_without_examples_is_refused():
    with pytest.raises(UserError, match="'task1' has no training examples"):
        order_of([5, 0], 4)


def test_sub_batches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="sub_batches: 3 does not divide train.batch_size 32"):
        order_of([5], 32, batching="sub_batches", sub_batches=3)


@pytest.mark.parametrize("batching", ["per_example", "sub_batches", "homogeneous"])
def test_an_epoch_of_natural_loaded_has_every_example_once(batching):
    counts = [13, 50, 3]
    order = order_of(counts, 8, batching=batching, sub_batches=2)
    first = super_batches(order, 2 * order.steps_per_epoch)
    for epoch in (first[: order.steps_per_epoch], first[order.steps_per_epoch :]):
        pairs = [pair for batch in epoch for pair in batch]
        assert sorted(pairs) == [(t, e) for t, count in enumerate(counts) for e in range(count)]
    assert first[0] != first[order.steps_per_epoch]


def test_sub_batches_hold_one_task_each():
    for batch in super_batches(
        order_of([40, 40, 40], 12, batching="sub_batches", sub_batches=3, sampling="uniform"), 20
    ):
        for start in range(0, 12, 4):
            assert len({task for task, _ in batch[start : start + 4]}) == 1


def test_homogeneous_super_batches_hold_one_task():
    batches = super_batches(order_of([40, 40], 8, batching="homogeneous"), 10)
    assert all(len({task for task, _ in batch}) == 1 for batch in batches)
    assert len({batch[0][0] for batch in batches}) == 2


def test_draws_follow_the_rates_and_each_task_goes_through_all_its_examples():
    order = order_of([10, 30], 20, sampling="uniform")
    pairs = [pair for batch in super_batches(order, 100) for pair in batch]
    tasks = Counter(task for task, _ in pairs)
    # 2,000 fair draws: standard deviation 22.
    assert tasks[0] == pytest.approx(1000, abs=110)
    drawn = [example for task, example in pairs if task == 0]
    for start in range(0, len(drawn) - 10, 10):
        assert sorted(drawn[start : start + 10]) == list(range(10))


def test_published_sizes_draw_by_them_although_less_is_loaded():
    order = order_of([30, 30], 20, published=(900, 100), sizes="published")
    tasks = Counter(task for batch in super_batches(order, 100) for task, _ in batch)
    assert tasks[1] == pytest.approx(200, abs=70)  # standard deviation 13


def test_the_order_is_the_seeds():
    def drawn(seed):
        return super_batches(order_of([20, 20], 8, seed=seed, sampling="uniform"), 3)

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_epoch_length_does_not_need_the_number_of_steps():
    order = order_of([20, 21], 8, sampling="uniform_then_natural")
    assert order.steps_per_epoch == 6


def test_a_tasks_sampling_weight_multiplies_its_rate_and_ends_the_exact_pass():
    specs = [spec_of_size("a"), replace(spec_of_size("b"), sampling_weight=3.0)]
    assert sampling_rates(MixtureSection(), specs, [30, 10]).tolist() == [0.5, 0.5]
    order = ExampleOrder(MixtureSection(), specs, [30, 10], 8, 0)
    assert not order.one_pass and order.steps_per_epoch == 5
    drawn = Counter(task for batch in super_batches(order, 100) for task, _ in batch)
    assert drawn[1] == pytest.approx(400, abs=60)

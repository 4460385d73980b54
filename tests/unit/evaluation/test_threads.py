"""Predictions from many threads at once are those of one."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ds_moe_mtl.evaluation import MultiTaskModel
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.task_level.routed_bart import RoutedBart
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, routing_options, task_specs
from tests.support.bart import write_bart
from tests.support.steps import quiet
from tests.support.tiny import WORDS, differ_experts, spread_gates, tiny_config, write_tiny

CALLS, THREADS = 800, 8


@pytest.fixture(autouse=True)
def quick_switches():
    """Let Python change threads within a call and not every fifth of a second."""
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-4)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


def written(folder, kind: str, **sections) -> MultiTaskModel:
    """Return an untrained tiny model of three tasks whose gates, experts and heads differ."""
    config = tiny_config(write_tiny(folder, layers=1), model={"kind": kind}, **sections)
    plan = make_plan(config, task_specs(config), quiet)
    network, _ = new_network(plan)
    spread_gates(network)
    differ_experts(network)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    tasks = [spec.to_dict() for spec in plan.specs]
    description = network.description(kind, routing_options(config, len(tasks)), tasks, {})
    save_folder(folder / kind, description, network.state_dict(), plan.tokenizer)
    return MultiTaskModel.from_pretrained(folder / kind, "cpu")


def questions(model: MultiTaskModel, count: int) -> list[tuple]:
    """Return mixed calls: (task, examples, max_length)."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 14)))

    calls = []
    for _ in range(count):
        task = draw.choice(list(model.specs))
        examples = [tuple(text() for _ in model.inputs(task)) for _ in range(draw.randint(1, 2))]
        calls.append((task, examples, draw.choice([None, 8, 12])))
    return calls


@pytest.mark.parametrize(
    ("kind", "calls", "sections"),
    [
        ("mt_tag", CALLS, {}),
        ("task_moe", CALLS // 10, {"router": {"vector_size": 8, "hidden": 8}}),
    ],
)
def test_mixed_tasks_from_eight_threads_get_one_threads_answers(tmp_path, kind, calls, sections):
    model = written(tmp_path, kind, **sections)
    asked = questions(model, calls // 10)
    expected = [model.predict(*call) for call in asked]
    assert len({str(answer) for answer in expected}) > 5
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda i: model.predict(*asked[i % len(asked)]), range(calls)))
    for number, answer in enumerate(answers):
        assert answer == expected[number % len(asked)], asked[number % len(asked)]


def test_generated_answers_from_threads_are_those_of_one(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    bart = AutoModelForSeq2SeqLM.from_pretrained(write_bart(tmp_path / "bart", layers=1))
    options = RouterOptions(route="random_task", seed=3)
    network = RoutedBart(bart, 3, options, expert_noise=0.2, num_beams=2).eval()
    ids = torch.arange(5, 11)

    def answer(tasks: tuple[int, ...]) -> list:
        ends = torch.arange(0, 6 * len(tasks) + 1, 6).int()
        return network.generate(ids.repeat(len(tasks)), ends, torch.tensor(tasks)).tolist()

    # One task runs one expert of a layer, two mix several: the places in the cache differ.
    asked = [(0,), (1,), (0, 1), (0, 1, 2)]
    expected = [answer(tasks) for tasks in asked]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(answer, asked * 2))
    assert answers == expected * 2

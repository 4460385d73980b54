"""The parts of the report, most important first, with the seconds that each may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

HOME = "ds_moe_mtl.benchmark.gpu"


@dataclass(frozen=True)
class Part:
    """One part: `module` has measure(request, tell), which `worker` calls in a process of its own.

    about: what it finds. seconds: its limit. options: what the request holds beside what all
    parts get.
    """

    name: str
    about: str
    seconds: float
    module: str
    options: Mapping[str, object] = field(default_factory=dict)


PARTS = (
    Part("machine", "device, versions, rates of a copy and of a product", 40, f"{HOME}.machine"),
    Part(
        "checks_new",
        "tests of what has not run on a card yet",
        120,
        f"{HOME}.checks",
        {"which": "new"},
    ),
    Part(
        "bench_bert_base",
        "whole model, BERT-Base's shape, by variant",
        170,
        f"{HOME}.contests",
        {"shape": "bert_base"},
    ),
    Part(
        "bench_minilm",
        "whole model, MiniLM's shape, by variant",
        110,
        f"{HOME}.contests",
        {"shape": "minilm"},
    ),
    Part("profile", "one step's kernel times by kind, dense and sparse", 75, f"{HOME}.traced_step"),
    Part("attention", "attention four ways, norm and projection", 70, f"{HOME}.attention"),
    Part("update", "the optimizer's step alone, by variant", 60, f"{HOME}.update"),
    Part("graphs", "the encoder eager and by CUDA graph", 60, f"{HOME}.graphs"),
    Part("checks_rest", "all other tests on a card", 300, f"{HOME}.checks", {"which": "rest"}),
)

"""Few-shot tuning of unseen tasks: routes of new tasks, resumption, vectors from data."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models import build_network
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.pretrained import find_encoder, load_transformer
from ds_moe_mtl.models.task_fit import head_specs
from ds_moe_mtl.models.task_level.stored_routes import load_routes, load_vectors
from ds_moe_mtl.models.task_level.task_router import RouterOptions, TaskRouter
from ds_moe_mtl.studies.crossfit.fewshot import Tuning, router_for
from ds_moe_mtl.studies.crossfit.task_vectors import fisher_vectors, save_vectors, text_vectors
from ds_moe_mtl.studies.crossfit.tune import FewShot, read_rows, tune_tasks
from ds_moe_mtl.tasks import get_task
from tests.support.gym import write_gym
from tests.support.steps import quiet
from tests.support.tiny import write_encoder

SEEN = ("gym-glue-sst2", "gym-emo", "gym-quarel")
NEW = "gym-ai2_arc"


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    """A tiny gym, a tiny encoder, task vectors, and an upstream model that was not trained."""
    from transformers import AutoTokenizer

    folder = write_gym(tmp_path_factory.mktemp("fewshot"))
    write_encoder(folder / "encoder", layers=1)
    specs = [get_task(name) for name in SEEN]
    vectors = np.random.default_rng(0).normal(size=(4, 6))
    save_vectors(folder / "vectors.npz", [*specs, get_task(NEW)], vectors)
    torch.manual_seed(0)
    network = build_network(
        load_transformer(find_encoder(str(folder / "encoder")), 0.0, False),
        "task_moe",
        head_specs(specs),
        0.0,
        router=RouterOptions(hidden=8, selection="softmax"),
        vectors=load_vectors(folder / "vectors.npz", SEEN),
    )
    network.set_step(7)
    description = network.description("task_moe", None, [spec.to_dict() for spec in specs], {})
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    save_folder(folder / "upstream", description, network.state_dict(), tokenizer)
    return SimpleNamespace(folder=folder, router=network.router, tokenizer=tokenizer)


def tune(gym, upstream="direct", output="tuned.jsonl", **more):
    tuning = Tuning(**{"steps": 3, "rates": (1e-3, 1e-4), "batch_sizes": (4,), **more})
    job = FewShot(
        upstream,
        gym.folder / output,
        (NEW,),
        tuning,
        root=str(gym.folder),
        encoder=str(gym.folder / "encoder"),
        cache=str(gym.folder / "cache"),
        vectors=str(gym.folder / "vectors.npz"),
        max_length=32,
        test_limit=6,
    )
    return tune_tasks(job, quiet)


def test_tuning_scores_the_test_rows_and_done_tasks_are_not_done_again(gym):
    (row,) = tune(gym)
    assert (row["task"], row["examples"], row["metric"]) == (NEW, 6, "accuracy")
    assert 0 <= row["value"] <= 100 and row["rate"] in (1e-3, 1e-4)
    text = (gym.folder / "tuned.jsonl").read_text()
    with (gym.folder / "tuned.jsonl").open("a") as file:
        file.write('{"task": "gym-ag_n')  # killed while writing
    assert tune(gym) == [row] and (gym.folder / "tuned.jsonl").read_text() == text
    with pytest.raises(UserError, match="was made with another steps"):
        tune(gym, steps=4)


@pytest.mark.parametrize("routes", ["nearest", "vector", "learned"])
def test_tuning_goes_on_from_an_upstream_model_by_every_kind_of_route(gym, routes):
    output = gym.folder / f"{routes}.jsonl"
    (row,) = tune(gym, str(gym.folder / "upstream"), routes=routes, output=output)
    assert row["settings"]["routes"] == routes
    assert read_rows(output) == [json.loads(output.read_text())]


def test_the_nearest_route_is_a_seen_tasks_and_the_vectors_route_the_routers(gym):
    vectors = str(gym.folder / "vectors.npz")
    routes = gym.router.eval().task_routes()
    near = router_for(gym.router, list(SEEN), NEW, "nearest", vectors, 0).eval().task_routes()
    assert any(torch.equal(near[:, 0], routes[:, task]) for task in range(3))
    own = load_vectors(vectors, [NEW], reference=SEEN)
    direct = router_for(gym.router, list(SEEN), NEW, "vector", vectors, 0).eval()
    assert torch.equal(direct.vectors, own) and direct.tau == gym.router.tau
    learned = router_for(gym.router, list(SEEN), NEW, "learned", vectors, 0)
    assert learned.vectors.requires_grad and not direct.vectors.requires_grad
    assert not any(p.requires_grad for p in learned.net.parameters())
    with pytest.raises(UserError, match="random task vectors"):
        router_for(gym.router, list(SEEN), NEW, "vector", "random", 0)
    with pytest.raises(UserError, match="'far'; allowed: nearest, vector, learned"):
        router_for(gym.router, list(SEEN), NEW, "far", vectors, 0)


def test_random_and_average_routes_need_no_vectors():
    for route in ("average", "random_task"):
        router = TaskRouter(RouterOptions(layers=(0,), route=route), 3)
        assert router_for(router, list(SEEN), NEW, "vector", None, 5).task_routes().shape[1] == 1


def test_vectors_are_centred_and_scaled_by_the_reference_tasks(gym):
    known = load_vectors(gym.folder / "vectors.npz", SEEN)
    torch.testing.assert_close(known.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-6)
    assert float(known.square().mean()) == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(ValueError, match="has no vector of task 'gym-boolq'"):
        load_vectors(gym.folder / "vectors.npz", ["gym-boolq"])
    (gym.folder / "no.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no file of task vectors"):
        load_vectors(gym.folder / "no.npz", SEEN)


def test_routes_are_taken_bit_for_bit_and_only_where_they_fit(gym):
    options = RouterOptions(layers=(0,), hidden=8, selection="softmax", vector_size=6)
    router = TaskRouter(options, 2)
    load_routes(router, gym.folder / "upstream", SEEN[1:])
    assert torch.equal(router.vectors, gym.router.vectors[1:])
    for name, parameter in router.net.named_parameters():
        assert torch.equal(parameter, gym.router.net.get_parameter(name))
    with pytest.raises(ValueError, match="router.hidden is 8 in .* and 4 here"):
        load_routes(
            TaskRouter(RouterOptions(layers=(0,), hidden=4), 3), gym.folder / "upstream", SEEN
        )
    with pytest.raises(ValueError, match="has no routes of task 'gym-ai2_arc'"):
        load_routes(router, gym.folder / "upstream", [NEW])


def test_text_and_fisher_vectors_describe_tasks_by_their_rows(gym):
    from ds_moe_mtl.data import encode_task

    specs = [get_task(name) for name in SEEN]
    splits = [
        encode_task(spec, "train", gym.tokenizer, str(gym.folder), gym.folder / "cache", 32, 6)
        for spec in specs
    ]
    source = find_encoder(str(gym.folder / "encoder"))
    text = text_vectors(source, [*splits, splits[0]])
    assert text.shape == (4, 32)
    np.testing.assert_array_equal(text[0], text[3])
    assert np.abs(text[0] - text[1]).max() > 1e-3
    fisher = fisher_vectors(source, head_specs(specs), splits, 2, 0, quiet)
    assert fisher.shape == (3, 3) and np.isfinite(fisher).all()
    np.testing.assert_allclose(fisher.sum(axis=0), 0, atol=1e-5)  # PCA centres
    assert np.linalg.matrix_rank(fisher, tol=1e-6) >= 2

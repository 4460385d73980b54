"""BART with experts as layers in both halves: equalities, generation, model folder."""

import numpy as np
import pytest
import torch

from ds_moe_mtl.data.batch import collate
from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.folder import load_folder
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.task_level.routed_bart import MAX_ANSWER, RoutedBart
from ds_moe_mtl.models.task_level.routed_layers import RoutedLayer
from ds_moe_mtl.models.task_level.task_router import RouterOptions
from tests.support.bart import write_bart

TASKS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bart(tmp_path_factory.mktemp("bart"))


def bart(folder):
    from transformers import BartForConditionalGeneration

    return BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def routed(folder, differ=0.0, **options) -> RoutedBart:
    torch.manual_seed(1)
    network = RoutedBart(bart(folder), TASKS, RouterOptions(**options))
    torch.manual_seed(2)
    for layer in [m for m in network.modules() if isinstance(m, RoutedLayer)]:
        for parameter in layer.experts.parameters():
            parameter.data += differ * torch.randn_like(parameter)
    return network


def batch_of(lengths=(7, 5, 4, 4, 3), tasks=(0, 1, 2, 0, 1)):
    """Return a batch whose answers have 3, 4 or 5 tokens, the special ones included."""
    draw = np.random.default_rng(0)
    answers = [3 + n % 3 for n in range(len(lengths))]

    def tokens(size):
        return [0, *draw.integers(5, 25, size - 2), 2]

    split = EncodedSplit(
        input_ids=np.concatenate([tokens(length) for length in lengths]).astype(np.int32),
        offsets=np.cumsum([0, *lengths]),
        second_start=np.array(lengths, dtype=np.int32),
        labels=np.zeros(len(lengths), dtype=np.float32),
        weights=np.ones(len(lengths), dtype=np.float32),
        questions=np.arange(len(lengths)),
        parts=np.zeros(len(lengths), dtype=np.int8),
        targets=np.concatenate([tokens(size) for size in answers]).astype(np.int32),
        target_offsets=np.cumsum([0, *answers]),
    )
    return collate([(task, n) for n, task in enumerate(tasks)], [split] * TASKS)


def losses(network, batch):
    return network(**network_inputs(batch)).losses_B


def test_average_route_over_identical_experts_is_plain_bart(folder):
    batch = batch_of()
    found = losses(routed(folder, route="average").eval(), batch)
    plain = bart(folder).eval()
    expected = []
    for row, target in enumerate(batch.targets_BS):
        start, stop = batch.cu_seqlens[row : row + 2].tolist()
        label = target[target != -100][None]
        expected.append(plain(input_ids=batch.input_ids_T[start:stop][None], labels=label).loss)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("route", ["random_task", "learned"])
def test_sparse_execution_is_the_dense_mixture_in_encoder_and_decoder(folder, route):
    network = routed(folder, differ=0.1, route=route).eval()
    assert network.router.options.layers == (0, 1, 2, 3) and network.router.one_hot
    batch = batch_of()
    sparse = losses(network, batch)
    use = network._scope.use

    def densely(call):
        call.one_hot = False
        return use(call)

    network._scope.use = densely
    torch.testing.assert_close(sparse, losses(network, batch), rtol=1e-5, atol=1e-5)


def test_the_decoders_experts_are_the_ones_that_run(folder):
    network = routed(folder, route="random_task", layers=(2, 3)).eval()
    batch = batch_of()
    before = losses(network, batch)
    layers = network.transformer.model.decoder.layers
    for index, layer in enumerate(layers):
        chosen = int(network.router.table[index, 1].argmax())
        for parameter in layer.experts[chosen].parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        others = {int(network.router.table[index, task].argmax()) for task in (0, 2)}
        layer.safe = chosen not in others
    changed = (losses(network, batch) - before).abs() > 1e-4
    assert changed[batch.task_ids_B == 1].all()
    if all(layer.safe for layer in layers):
        assert not changed[batch.task_ids_B != 1].any()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("route", ["random_task", "average"])
def test_generation_with_a_cache_is_generation_without(folder, beams, route):
    network = routed(folder, differ=0.2, route=route).eval()
    network.num_beams = beams
    batch = batch_of(tasks=(1, 1, 1, 1, 1))
    found = network.generate(**network_inputs(batch))
    assert found.shape == (5, MAX_ANSWER)
    network.transformer.generation_config.use_cache = False
    network.transformer.config.use_cache = False
    assert torch.equal(found, network.generate(**network_inputs(batch)))
    assert (found[:, 2:] != 1).any()  # more than the token that starts an answer


def test_answers_do_not_depend_on_the_other_tasks_of_the_batch(folder):
    network = routed(folder, differ=0.2, route="random_task").eval()
    together = network.generate(**network_inputs(batch_of(lengths=(6, 6), tasks=(0, 1))))
    alone = network.generate(**network_inputs(batch_of(lengths=(6, 6), tasks=(0, 0))))
    assert torch.equal(together[0], alone[0])


def test_a_batch_without_sequences_reaches_every_parameter(folder):
    network = routed(folder, route="random_task").train()
    empty = collate([], [])
    out = network(**network_inputs(empty), targets_BS=torch.zeros(0, 1, dtype=torch.long))
    assert out.losses_B.shape == (0,)
    out.losses_B.sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_a_model_folder_gives_the_same_losses_and_answers(folder, tmp_path):
    from transformers import AutoTokenizer

    network = routed(folder, differ=0.2, selection="straight_through", layers=(1, 2)).eval()
    network.set_step(500)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    description = network.description("task_moe", None, [{"name": f"t{i}"} for i in range(3)], {})
    save_folder(tmp_path / "model", description, network.state_dict(), tokenizer)
    loaded, about = load_folder(tmp_path / "model")
    batch = batch_of()
    assert torch.equal(losses(loaded, batch), losses(network, batch))
    assert torch.equal(
        loaded.generate(**network_inputs(batch)), network.generate(**network_inputs(batch))
    )
    assert loaded.router.tau == network.router.tau and about["family"] == "bart"
    assert torch.equal(loaded.router.logits(), network.router.logits())


def test_a_layer_beyond_both_halves_is_refused(folder):
    with pytest.raises(ValueError, match=r"router.layers: 4 is no layer; allowed: 0 to 3"):
        routed(folder, layers=(0, 4))

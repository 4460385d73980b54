"""Losses of several labels, tags and answers against closed forms, and whose head they move."""

import math

import pytest
import torch

from ds_moe_mtl.models.heads import HeadSpec, TaskHeads
from ds_moe_mtl.models.losses import class_weights
from ds_moe_mtl.models.shape_losses import answer_losses, label_losses, tag_losses

SPECS = [
    HeadSpec("plain", 3),
    HeadSpec("labels", 4, form="labels"),
    HeadSpec("tags", 5, form="tags"),
    HeadSpec("answer", 2, form="answer"),
]


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_several_labels_cost_their_mean_binary_cross_entropy_over_log_2():
    logits = drawn(2, 4)
    logits[0, 2:] = -torch.inf  # beyond the labels of the first sequence's task
    logits.requires_grad_()
    sets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    sizes = torch.tensor([2, 3])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    found = label_losses(logits, sets, sizes, weights)
    p = torch.sigmoid(logits)
    first = -(p[0, 0].log() + (1 - p[0, 1]).log()) / 2
    second = -(3 * p[1, 0].log() + p[1, 1].log() + (1 - p[1, 2]).log()) / 3
    torch.testing.assert_close(found, torch.stack([first, second]) / math.log(2))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all() and (gradient[0, 2:] == 0).all()
    assert float(label_losses(torch.zeros(1, 4), sets[:1], sizes[:1])) == pytest.approx(1.0)


def test_tags_cost_the_mean_over_words_of_their_cross_entropy_over_log_tags():
    logits = drawn(5, 3).requires_grad_()
    labels, rows = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 2, 2])
    own = torch.tensor([True, True, True, False, False])  # the last two are another task's
    classes = torch.tensor([3, 3, 3, 2, 2])
    found = tag_losses(logits, labels, rows, own, 3, True, classes)
    entropy = -logits.log_softmax(1)[torch.arange(3), labels[:3]]
    expected = torch.stack([entropy.mean() / math.log(3), entropy.new_zeros(()), entropy[0] * 0])
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).expand(5, 3)
    weighted = tag_losses(logits, labels, rows, own, 3, False, classes, weights)[0]
    torch.testing.assert_close(weighted, (entropy * torch.tensor([0.5, 2.0, 1.0])).mean())
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (gradient[3:] == 0).all() and (gradient[:3] != 0).all()


def test_an_answer_costs_both_cross_entropies_over_the_log_of_its_own_tokens():
    logits = drawn(7, 2).requires_grad_()
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    labels = torch.tensor([0, 1, 2, 0, 0, 0, 3])  # 1 the first token, 2 the last; none in row 1
    own = torch.tensor([True] * 6 + [False])
    found = answer_losses(logits, labels, rows, own, 3, True)
    first, last = (-logits[:4, place].log_softmax(0)[place + 1] for place in (0, 1))
    assert found[1] == found[2] == 0
    torch.testing.assert_close(found[0], (first + last) / 2 / math.log(4))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all() and (gradient[4:] == 0).all()
    even = answer_losses(torch.zeros(7, 2), labels, rows, own, 3, True)
    assert float(even[0]) == pytest.approx(1.0)


def test_no_sequences_and_no_units_are_no_loss():
    nothing, empty = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)
    own = torch.zeros(0, dtype=torch.bool)
    assert tag_losses(empty, nothing, nothing, own, 2, True, nothing).tolist() == [0, 0]
    assert answer_losses(empty, nothing, nothing, own, 0, True).shape == (0,)
    assert label_losses(empty, empty, nothing).shape == (0,)


def outputs(heads, hidden, tasks, units, rows):
    spans = torch.full((len(tasks), 2, 2), -1)
    starts = torch.arange(len(tasks))
    of_sequences = heads(hidden, hidden[: len(tasks)], starts, tasks, spans)
    return of_sequences, heads.of_units(hidden, units, tasks[rows])


def test_each_task_reads_its_own_head_and_moves_no_other():
    torch.manual_seed(0)
    heads = TaskHeads(8, SPECS, 0.0)
    hidden, tasks = torch.randn(6, 8), torch.tensor([0, 1, 2, 3])
    units, rows = torch.tensor([2, 4, 5, 3]), torch.tensor([2, 2, 2, 3])
    sequences, tokens = outputs(heads, hidden, tasks, units, rows)
    assert sequences.shape == (4, 4) and tokens.shape == (4, 5)
    torch.testing.assert_close(sequences[0, :3], heads.linears[0](hidden[0]))
    torch.testing.assert_close(sequences[1], heads.linears[1](hidden[1]))
    torch.testing.assert_close(tokens[:3], heads.linears[2](hidden[units[:3]]))
    torch.testing.assert_close(tokens[3, :2], heads.linears[3](hidden[3]))
    assert torch.isinf(sequences[2:]).all() and torch.isinf(tokens[3, 2:]).all()
    tokens[:3].sum().backward(retain_graph=True)
    moved = [
        head.weight.grad.abs().sum() > 0 for head in heads.linears if head.weight.grad is not None
    ]
    assert moved == [True, False]  # tags; the answer's head is in the same product


def test_a_batch_without_units_gives_every_head_a_gradient_of_zeros():
    heads = TaskHeads(8, SPECS[2:], 0.0)
    nothing = torch.zeros(0, dtype=torch.long)
    sequences, tokens = outputs(heads, torch.randn(2, 8), torch.tensor([0, 1]), nothing, nothing)
    assert sequences.shape == (2, 1) and tokens.shape == (0, 5)
    tokens.sum().backward()
    assert all((head.weight.grad == 0).all() for head in heads.linears)


def test_class_weights_stand_by_task_and_class():
    specs = [HeadSpec("a", 2, class_weights=(2.0, 0.5)), HeadSpec("b", 3)]
    assert class_weights(specs).tolist() == [[2.0, 0.5, 1.0], [1.0, 1.0, 1.0]]
    assert class_weights(specs[1:]) is None

"""Answers from the outputs of a task's head: predictions, and the scores of kinds of many parts.

N sequences, U units (words that have a piece, or tokens of a context), C outputs, L labels.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ds_moe_mtl.data import EncodedSplit
from ds_moe_mtl.data.answer_spans import stored_texts
from ds_moe_mtl.tasks import TaskSpec
from ds_moe_mtl.tasks.shape_metrics import (
    OUTSIDE,
    answer_scores,
    chosen_thresholds,
    given_labels,
    probabilities,
    score_labels,
    score_tags,
)


class Answer(NamedTuple):
    """A part of a context: characters [start, end), and the text that stands there."""

    text: str
    start: int
    end: int


def predictions_of(
    spec: TaskSpec, outputs: np.ndarray, split: EncodedSplit, columns: Mapping[str, list]
) -> list:
    """Return what MultiTaskModel.predict answers for each example, but for generated texts.

    outputs: of the task's head, [N, C] or [U, C]. columns: the examples, as split was made of.
    """
    if spec.kind == "multilabel":
        return label_lists(spec, outputs)
    if spec.kind == "tags":
        rows = zip(columns[spec.text[0]], tag_lists(spec, outputs, split), strict=True)
        return [list(zip(words, tags, strict=True)) for words, tags in rows]
    if spec.kind == "answer":
        return found_answers(spec, outputs, split)
    if spec.kind == "options":
        options = columns[spec.choices[0]]
        questions, scores = split.questions, outputs[:, 0]
        return [
            choices[int(scores[questions == number].argmax())]
            for number, choices in enumerate(options)
        ]
    if spec.kind == "regression":
        return [float(value) for value in outputs[:, 0]]
    if spec.kind == "ranking":
        truth_QC = outputs[:, 1].reshape(-1, len(spec.choices))
        return [spec.choices[i] for i in truth_QC.argmax(axis=1)]
    return [spec.labels[i] for i in outputs.argmax(axis=1)]


def label_lists(spec: TaskSpec, outputs_NL: np.ndarray) -> list[list[tuple[str, float]]]:
    """Return each example's labels with their probabilities, in the order of spec.labels."""
    given_NL = given_labels(outputs_NL, spec.label_thresholds)
    return [
        [(spec.labels[i], float(p_L[i])) for i in np.flatnonzero(given_L)]
        for given_L, p_L in zip(given_NL, probabilities(outputs_NL), strict=True)
    ]


def tag_lists(spec: TaskSpec, outputs_UC: np.ndarray, split: EncodedSplit) -> list[list[str]]:
    """Return each row's tags, one a word; "O" for a word that the model has not seen."""
    numbers_U = outputs_UC.argmax(axis=1)
    offsets = split.unit_offsets
    found = []
    for row, words in enumerate(np.diff(split.word_offsets).tolist()):
        tags = [OUTSIDE] * words
        for unit in range(int(offsets[row]), int(offsets[row + 1])):
            tags[split.unit_words[unit]] = spec.labels[numbers_U[unit]]
        found.append(tags)
    return found


def gold_tags(spec: TaskSpec, split: EncodedSplit) -> list[list[str]]:
    """Return the tags that are right for each row."""
    ends = split.word_offsets
    return [
        [spec.labels[tag] for tag in split.word_tags[a:b]]
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]


def found_answers(spec: TaskSpec, outputs_U2: np.ndarray, split: EncodedSplit) -> list[Answer]:
    """Return each row's answer: the part of its context with the best sum of both scores.

    A part has at most spec.longest_answer tokens; of equals the first one is taken. A context
    without tokens has the empty answer at 0.
    """
    contexts = stored_texts(split.contexts, split.context_offsets)
    found = []
    for row, context in enumerate(contexts):
        units = slice(int(split.unit_offsets[row]), int(split.unit_offsets[row + 1]))
        first, last = best_part(outputs_U2[units], spec.longest_answer)
        if last < 0:
            found.append(Answer("", 0, 0))
            continue
        start = int(split.unit_chars[units][first, 0])
        end = int(split.unit_chars[units][last, 1])
        text = context[start:end]
        start += len(text) - len(text.lstrip())  # some tokenizers count the blank before a word
        found.append(Answer(text.strip(), start, start + len(text.strip())))
    return found


def best_part(scores_T2: np.ndarray, longest: int) -> tuple[int, int]:
    """Return (first, last) with the largest sum of scores, last - first < longest; (0, -1): none.

    scores_T2: of each token as the first one, and as the last.
    """
    best, pair = -np.inf, (0, -1)
    for length in range(min(longest, len(scores_T2))):
        sums = scores_T2[: len(scores_T2) - length, 0] + scores_T2[length:, 1]
        first = int(sums.argmax())
        if sums[first] > best or (sums[first] == best and first < pair[0]):
            best, pair = sums[first], (first, first + length)
    return pair


def gold_answers(split: EncodedSplit) -> list[list[str]]:
    """Return the answers that are right for each row, one or several."""
    return [json.loads(text) for text in stored_texts(split.golds, split.gold_offsets)]


def shape_score(spec: TaskSpec, metric: str, outputs: np.ndarray, split: EncodedSplit) -> float:
    """Return a metric of a multilabel, tags or answer task in percent."""
    if spec.kind == "multilabel":
        return 100 * score_labels(metric, outputs, split.label_sets, spec.label_thresholds)
    if spec.kind == "tags":
        return 100 * score_tags(metric, tag_lists(spec, outputs, split), gold_tags(spec, split))
    predicted = [answer.text for answer in found_answers(spec, outputs, split)]
    return 100 * float(answer_scores(metric, predicted, gold_answers(split)).mean())


def shape_facts(split: EncodedSplit) -> dict[str, int]:
    """Return what a reader of such a score must know, where there is anything: counts."""
    facts = {"unseen_words": split.unseen_words, "lost_answers": split.lost_answers}
    return {name: count for name, count in facts.items() if count}


def tuned(spec: TaskSpec, outputs_NL: np.ndarray, split: EncodedSplit) -> TaskSpec:
    """Return the row with thresholds chosen on these rows; as it is where it has a fixed one."""
    if spec.kind != "multilabel" or spec.threshold is not None:
        return spec
    return replace(spec, thresholds=chosen_thresholds(outputs_NL, split.label_sets))

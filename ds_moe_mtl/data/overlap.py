"""Examples that are the same to a model: the same tokens, in one split or in two.

N examples.
"""

from dataclasses import dataclass

import numpy as np

from ds_moe_mtl.data.encode import EncodedSplit
from ds_moe_mtl.data.hashes import grouped_hashes, segment_hashes


@dataclass(frozen=True)
class Repeats:
    """The examples of one split that are the same to a model, by 64-bit hashes of their tokens.

    duplicates: examples that repeat an earlier one, whatever their labels; twins: the first of
    them, after the example that it repeats. texts: that have different labels; examples: of those;
    clash: two of them.
    """

    duplicates: int = 0
    twins: tuple[int, int] | None = None
    texts: int = 0
    examples: int = 0
    clash: tuple[int, int] | None = None


def seen_in_training(train: EncodedSplit, dev: EncodedSplit) -> int:
    """Dev examples all of whose sequences are sequences of training examples, labels aside.

    Sequences are compared by 64-bit hashes of their tokens, segments included.
    """
    in_train_N = np.isin(dev.sequence_hashes, train.sequence_hashes)
    unseen = np.unique(dev.questions[~in_train_N])
    return dev.num_examples - len(unseen)


def repeats(split: EncodedSplit) -> Repeats:
    """What of a split is there more than once."""
    text_N = np.unique(_example_hashes(split), return_inverse=True)[1]
    duplicates = len(text_N) - int(text_N.max(initial=-1)) - 1
    if not duplicates:
        return Repeats()
    label_N = _label_hashes(split)
    order = np.lexsort((np.arange(len(text_N)), label_N, text_N))
    texts, labels = text_N[order], label_N[order]
    follows = texts[1:] == texts[:-1]
    changes = follows & (labels[1:] != labels[:-1])
    clashing = np.unique(texts[1:][changes])
    clash = None
    if len(clashing):
        in_clash_N = np.isin(text_N, clashing)
        first = int(in_clash_N.argmax())
        same = (text_N == text_N[first]) & (label_N != label_N[first])
        clash = (first, int(same.argmax()))
    firsts = np.unique(text_N, return_index=True)[1]
    repeat_N = np.ones(len(text_N), dtype=bool)
    repeat_N[firsts] = False
    later = int(repeat_N.argmax())
    return Repeats(
        duplicates,
        (int(firsts[text_N[later]]), later),
        len(clashing),
        int(np.isin(text_N, clashing).sum()),
        clash,
    )


def _example_hashes(split: EncodedSplit) -> np.ndarray:
    hashes_N = split.sequence_hashes
    if split.spans is not None:
        places = split.spans.reshape(-1)
        ends = 4 * np.arange(split.num_sequences + 1)
        hashes_N = segment_hashes(places, ends, hashes_N)
    return hashes_N if _one_each(split) else grouped_hashes(hashes_N, split.questions)


def _label_hashes(split: EncodedSplit) -> np.ndarray:
    if split.label_sets is not None:
        width = split.label_sets.shape[1]
        values, ends = split.label_sets.reshape(-1), width * np.arange(split.num_sequences + 1)
    elif split.word_tags is not None:
        values, ends = split.word_tags, split.word_offsets
    elif split.golds is not None:
        values, ends = split.golds, split.gold_offsets
    elif split.targets is not None:
        values, ends = split.targets, split.target_offsets
    else:
        values, ends = split.labels.view(np.uint32), np.arange(split.num_sequences + 1)
    hashes_N = segment_hashes(values, ends, np.zeros(split.num_sequences))
    return hashes_N if _one_each(split) else grouped_hashes(hashes_N, split.questions)


def _one_each(split: EncodedSplit) -> bool:
    return split.num_examples == split.num_sequences

"""How long texts are, whatever length they are cut at."""

import numpy as np

from ds_moe_mtl.data.encode import EncodedSplit, prefixed
from ds_moe_mtl.data.tagged import WordUnits
from ds_moe_mtl.data.tokens import tokenise
from ds_moe_mtl.tasks import TaskSpec

_ANY = 1 << 30  # tokens; no text is longer


def full_lengths(
    spec: TaskSpec, columns: dict[str, list], split: EncodedSplit, tokenizer
) -> np.ndarray:
    """Tokens of each sequence as it would be without a length to cut at, int64 [N].

    columns: the rows that the split was made of; only those that may be cut are read again.
    """
    lengths_N = split.lengths.copy()
    may_be_cut = lengths_N == lengths_N.max()
    if not split.cut:
        return lengths_N
    if spec.joined:  # a text that is cut there may end below the length
        may_be_cut[:] = True
    examples = np.unique(split.questions[may_be_cut])
    some = {name: [values[n] for n in examples] for name, values in columns.items()}
    if spec.kind == "tags":
        some[spec.text[0]] = WordUnits(some[spec.text[0]]).texts
    arrays = tokenise(spec, prefixed(spec, some), tokenizer, _ANY, split.origin)
    lengths_N[np.isin(split.questions, examples)] = np.diff(arrays["offsets"])
    return lengths_N

"""The five SuperGLUE tasks of the paper as rows (appendix A.2, A.3.1).

The paper gives lengths for GLUE only; our choice elsewhere is 128 tokens, and more where the text
is a passage (BoolQ 256, MultiRC 512).
"""

from ds_moe_mtl.tasks.spec import TaskSpec

FALSE_TRUE = ("False", "True")


def _superglue(name: str, text: tuple[str, ...], size: int, dev: int, **more) -> TaskSpec:
    fields = {
        "kind": "classification",
        "labels": FALSE_TRUE,
        "hub": ("aps/super_glue", name),
        "folder": f"super_glue/{name}",
        "published_size": size,
        "published_dev_size": dev,
    }
    return TaskSpec(name=name, text=text, **{**fields, **more})


SUPERGLUE = (
    _superglue(
        "cb", ("premise", "hypothesis"), 250, 56, labels=("entailment", "contradiction", "neutral")
    ),
    _superglue("boolq", ("passage", "question"), 9_427, 3_270, max_length=256),
    # "The paragraph and question are concatenated to form the first sequence, and the answer is
    # used as the second"; F1a is over all answer options.
    _superglue(
        "multirc",
        ("paragraph", "answer"),
        27_243,
        4_848,
        joined="question",
        metric="f1a",
        max_length=512,
    ),
    # The head sees [CLS] and the word in both sentences.
    _superglue(
        "wic",
        ("sentence1", "sentence2"),
        5_428,
        638,
        kind="span",
        spans=("start1", "end1", "start2", "end2"),
    ),
    # Premise and question make one context, and each choice is classified with it. The column
    # holds "cause" or "effect"; the wording is the one of COPA's own paper.
    _superglue(
        "copa",
        ("premise",),
        400,
        100,
        kind="ranking",
        choices=("choice1", "choice2"),
        joined="question",
        phrases=(
            ("cause", "What was the cause of this?"),
            ("effect", "What happened as a result?"),
        ),
    ),
)

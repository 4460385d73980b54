"""The eight GLUE tasks of the paper as rows.

Sizes are those of the published train splits (appendix A.2, table 9). Lengths: 512 for QNLI and
MNLI, 128 for the rest (A.3.2). WNLI and AX are not among the paper's tasks.
"""

from ds_moe_mtl.tasks.spec import TaskSpec


def _glue(
    name: str, text: tuple[str, ...], labels: tuple[str, ...], size: int, dev: int, **more
) -> TaskSpec:
    fields = {
        "kind": "classification",
        "hub": ("nyu-mll/glue", name),
        "folder": f"glue/{name}",
        "published_size": size,
        "published_dev_size": dev,
    }
    return TaskSpec(name=name, text=text, labels=labels, **{**fields, **more})


GLUE = (
    _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), 2_490, 277),
    _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), 3_668, 408),
    _glue(
        "stsb", ("sentence1", "sentence2"), (), 5_749, 1_500, kind="regression", metric="spearman"
    ),
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), 8_551, 1_043, metric="matthews"),
    _glue("sst2", ("sentence",), ("negative", "positive"), 67_349, 872),
    _glue(
        "qnli",
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        104_743,
        5_463,
        max_length=512,
    ),
    _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), 363_846, 40_430),
    _glue(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        392_702,
        19_647,
        max_length=512,
        # The score is the mean of the two (sec. 4.2).
        dev_splits=("validation_matched", "validation_mismatched"),
    ),
)

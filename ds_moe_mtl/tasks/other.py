"""The sets of the paper outside GLUE and SuperGLUE as rows: three of sentiment, and SciTail.

The dev sets are the paper's (table 9): the 25k and 38k test reviews of IMDB and Yelp. Lengths are
our choice: 512 for reviews, 128 for sentences.
"""

from ds_moe_mtl.tasks.spec import TaskSpec

SENTIMENT = ("negative", "positive")

OTHER = (
    TaskSpec(
        name="rotten_tomatoes",
        kind="classification",
        text=("text",),
        labels=SENTIMENT,
        published_size=8_530,
        published_dev_size=1_066,
        hub=("cornell-movie-review-data/rotten_tomatoes", "default"),
        folder="rotten_tomatoes",
    ),
    TaskSpec(
        name="imdb",
        kind="classification",
        text=("text",),
        labels=SENTIMENT,
        max_length=512,
        published_size=25_000,
        published_dev_size=25_000,
        hub=("stanfordnlp/imdb", "plain_text"),
        folder="imdb/plain_text",
        dev_splits=("test",),
    ),
    TaskSpec(
        name="yelp_polarity",
        kind="classification",
        text=("text",),
        labels=SENTIMENT,
        max_length=512,
        published_size=560_000,
        published_dev_size=38_000,
        hub=("fancyzhx/yelp_polarity", "plain_text"),
        folder="yelp_polarity/plain_text",
        dev_splits=("test",),
        stand_ins=(
            ("train", "yelp_polarity/from_review_full_stars/train.parquet"),
            ("test", "yelp_polarity/from_review_full_stars/test.parquet"),
        ),
    ),
    TaskSpec(
        name="scitail",
        kind="classification",
        text=("premise", "hypothesis"),
        labels=("entails", "neutral"),
        published_size=23_596,
        published_dev_size=1_304,
        hub=("allenai/scitail", "tsv_format"),
        folder="scitail/tsv_format",
        stand_ins=(("train", "scitail/tsv_format/train_fewshot.parquet"),),
    ),
)

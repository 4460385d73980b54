"""A tokenizer is taken where its ids, its sequences and its first token fit the encoder."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, BertTokenizerFast, PreTrainedTokenizerFast

from ds_moe_mtl.models.tokenizer import EncoderLimits, limits_by, load_tokenizer
from tests.support.bart import write_bart
from tests.support.tiny import write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def plain(folder, template=None, **more):
    """Write a word tokenizer; template: what it makes of a text, None: no special tokens."""
    backend = Tokenizer(models.WordLevel({"[CLS]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        pair = template + " $B"
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=[("[CLS]", more.pop("cls", 0))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", **more
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_the_longest_sequence_is_the_encoders_or_the_tokenizers(folder, tmp_path):
    assert load_tokenizer(folder, EncoderLimits(1000, 50)).model_max_length == 50
    assert load_tokenizer(folder, EncoderLimits(1000, 500)).model_max_length == 64
    unlimited = load_tokenizer(plain(tmp_path, "[CLS] $A"), EncoderLimits(1000, 500))
    assert unlimited.model_max_length == 500


def test_an_id_beyond_the_embedding_is_refused(folder, tmp_path):
    size = len(load_tokenizer(folder, EncoderLimits(1000, 64)))
    assert len(load_tokenizer(folder, EncoderLimits(size, 64))) == size
    with pytest.raises(ValueError, match=f"'right' with id {size - 1}, the encoder's embedding"):
        load_tokenizer(folder, EncoderLimits(size - 1, 64))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'<new>' with id {size}"):
        load_tokenizer(tmp_path, EncoderLimits(size, 64))


@pytest.mark.parametrize("template", [None, "$A [CLS]"])
def test_a_tokenizer_that_puts_no_special_token_first_is_refused(tmp_path, template):
    with pytest.raises(ValueError, match="puts no special token before a text") as refusal:
        load_tokenizer(plain(tmp_path, template), EncoderLimits(1000, 64))
    assert "\n" not in str(refusal.value)


def test_a_special_id_that_is_in_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="special"):
        load_tokenizer(plain(tmp_path, "[CLS] $A", cls=7), EncoderLimits(3, 64))


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer \\(tokenizer.json"):
        load_tokenizer(tmp_path, EncoderLimits(1000, 64))
    (tmp_path / "tokenizer.json").write_text("{no")
    with pytest.raises(ValueError, match="no tokenizer can be loaded") as refusal:
        load_tokenizer(tmp_path, EncoderLimits(1000, 64))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "longest"), [("bert", 40), ("roberta", 38), ("distilbert", 40), ("bart", 40)]
)
def test_the_limits_of_a_configuration_need_no_weights(kind, longest):
    more = {"vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 1}
    assert limits_by(AutoConfig.for_model(kind, **more)) == EncoderLimits(50, longest)


def test_bart_has_a_tokenizer_that_fits(tmp_path):
    write_bart(tmp_path)
    limits = limits_by(AutoConfig.from_pretrained(tmp_path))
    assert load_tokenizer(tmp_path, limits).model_max_length == min(64, limits.max_length)

"""Encoders whose pads reach real tokens are refused: routed, they would be other functions."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ds_moe_mtl.models import upcycle
from tests.support.tiny import BERT


def model_of(kind: str, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    values = {**BERT, "vocab_size": 100, "initializer_range": 0.3, **more}
    return AutoModel.from_config(AutoConfig.for_model(kind, **values)).train()


@pytest.mark.parametrize(
    ("kind", "more"),
    [("fnet", {}), ("convbert", {"embedding_size": 32}), ("nystromformer", {}), ("yoso", {})],
)
def test_an_encoder_that_mixes_pads_into_real_tokens_is_refused_and_left_as_it_was(kind, more):
    model = model_of(kind, **more)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="lets pads reach real tokens") as raised:
        upcycle(model)
    assert "\n" not in str(raised.value) and model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "deberta-v2"])
def test_real_tokens_of_an_upcycled_encoder_are_the_dense_ones_beside_pads(kind):
    model = model_of(kind).eval()
    ids = torch.randint(5, 99, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    with torch.no_grad():
        dense = model(input_ids=ids, attention_mask=mask)[0]
        sparse = upcycle(model, num_gates=3)
        found = sparse(input_ids=ids, attention_mask=mask, gate_ids=torch.arange(3))[0]
    torch.testing.assert_close(found[mask > 0], dense[mask > 0], rtol=1e-5, atol=1e-5)

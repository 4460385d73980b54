"""transformers' own `save_pretrained`, which would write an upcycled model that it cannot load."""

import functools

from ds_moe_mtl.models.token_level.direct_calls import routed_ffns


def refuse_plain_saving() -> None:
    """Make transformers' `save_pretrained` refuse every model that has MoE layers of ours.

    On the class, since the model that is saved may be the one around, or inside, the upcycled one.
    """
    from transformers import PreTrainedModel

    plain = PreTrainedModel.save_pretrained
    if getattr(plain, "refuses_upcycled", False):
        return

    @functools.wraps(plain)
    def save_pretrained(self, *args, **kwargs):
        if routed_ffns(self):
            raise ValueError(
                f"{type(self).__name__} is upcycled, and transformers would load it with new "
                f"random FFNs; allowed: ds_moe_mtl.models.save_upcycled(model, folder) and "
                f"load_upcycled(folder)"
            )
        return plain(self, *args, **kwargs)

    save_pretrained.refuses_upcycled = True
    PreTrainedModel.save_pretrained = save_pretrained

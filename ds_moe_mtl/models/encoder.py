"""A transformers encoder run on packed tokens: no pad enters a projection or an FFN."""

from collections.abc import Sequence

import torch
from torch import nn

from ds_moe_mtl.models.attention.choice import (
    PACKED_EAGER,
    attention_plan,
    packed_attention,
    register_packed_attention,
)
from ds_moe_mtl.models.dropout import replace_dropout
from ds_moe_mtl.models.families import family_of
from ds_moe_mtl.models.fused import forms, set_kernels
from ds_moe_mtl.models.kernels import TORCH, EncoderKernels, kernels_on
from encoder_kernels import LARGEST_HEAD


class PackedEncoder(nn.Module):
    """Runs a `transformer` of a known family on T real tokens of many sequences at once.

    attention: one of models.attention's names, to run that one; None: the fastest that can.
    kernels: as train.encoder_kernels; use_kernels sets it.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        family = family_of(transformer)
        register_packed_attention()
        family.pack(transformer)
        replace_dropout(transformer)
        self.transformer = transformer
        self.attention: str | None = None
        self.kernels = "auto"
        self._family = family
        self.window = family.window(transformer)
        plain = not self.window and not family.relative
        self._forms = forms(transformer)._replace(attention=plain)
        self._running = TORCH
        self.first_position = family.first_position(transformer)
        self.token_types = family.token_types(transformer)
        self.max_length = family.max_length(transformer)  # tokens of a sequence
        self._head_size = family.head_size(transformer)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.transformer.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the hidden states."""
        return self._family.word_embeddings(self.transformer).weight.dtype

    def _positions(self, input_ids_T: torch.Tensor, position_ids_T: torch.Tensor) -> torch.Tensor:
        """Return the position ids [T], as transformers counts them.

        RoBERTa and its like count the tokens that are no pads, from the position after that of
        pads on: a pad's token inside a text takes no place of its own.
        """
        if self.first_position == 0:
            return position_ids_T
        real_T = (input_ids_T != self.first_position - 1).long()
        before_T = real_T.cumsum(0) - real_T
        starts_T = torch.arange(len(real_T), device=real_T.device) - position_ids_T
        place_T = before_T - before_T[starts_T.clamp(min=0)]
        return (place_T + 1) * real_T + self.first_position - 1

    def attention_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the attention that runs there."""
        if self._family.relative:
            return PACKED_EAGER
        kernels = self.kernels if self._forms.attention else "torch"
        return self.attention or packed_attention(device, dtype, self._head_size, kernels)

    def kernels_on(self, device: torch.device, dtype: torch.dtype) -> EncoderKernels:
        """Return the kernels that its layers run on there."""
        found = kernels_on(self.kernels, device, dtype, self._head_size)
        return EncoderKernels(*(a and b for a, b in zip(found, self._forms, strict=True)))

    def use_kernels(self, option: str) -> None:
        """Have the layers run on what train.encoder_kernels = `option` means.

        Raises ValueError for triton where the layers are not of the form that it takes.
        """
        if option == "triton" and not all(self._forms):
            raise ValueError(
                f"train.encoder_kernels = triton, but layers of {type(self.transformer).__name__} "
                f"do not do as BERT's; allowed: auto, torch"
            )
        if option == "triton" and self._head_size > LARGEST_HEAD:
            raise ValueError(
                f"train.encoder_kernels = triton, but attention heads of size {self._head_size}; "
                f"allowed: up to {LARGEST_HEAD}, or auto, torch"
            )
        self.kernels = option

    def forward(
        self,
        input_ids_T: torch.Tensor,
        token_type_ids_T: torch.Tensor,
        position_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        groups: Sequence[tuple[int, int]] | None,
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states [T, D].

        cu_seqlens [B + 1]: where sequences start; groups: [first, last) sequences that attention
        pads together, None to choose them here. lengths: the tokens of each sequence as the host
        knows them; None reads them from cu_seqlens, for which the host waits for a GPU. Positions
        restart at 0 in each sequence. Tokens after the last sequence's are carried along and attend
        to nothing.
        """
        device = input_ids_T.device
        name = self.attention_on(device, self.dtype)
        if self.transformer.config._attn_implementation != name:
            self._family.use_attention(self.transformer, name)
        kernels = self.kernels_on(device, self.dtype)
        if kernels != self._running:
            set_kernels(self.transformer, kernels)
            self._running = kernels
        if lengths is None:
            lengths = cu_seqlens.diff().tolist()
        types = {}
        if self.token_types:
            types_T = token_type_ids_T if self.token_types > 1 else token_type_ids_T * 0
            types["token_type_ids"] = types_T[None]
        out = self.transformer(
            input_ids=input_ids_T[None],
            position_ids=self._positions(input_ids_T, position_ids_T)[None],
            packing=attention_plan(name, lengths, groups, device, self.dtype, cu_seqlens),
            **types,
        )
        return out.last_hidden_state.squeeze(0)

    def pool(self, cls_BD: torch.Tensor) -> torch.Tensor:
        """Return [CLS] states [B, D] through the pretrained pooler, or as they are without one."""
        pooler = getattr(self.transformer, "pooler", None)
        return cls_BD if pooler is None else pooler(cls_BD[:, None])

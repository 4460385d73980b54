"""A multi-task encoder, dense or sparse, as a transformers model; it travels with the weights.

It needs torch and transformers alone, and computes what the package ds_moe_mtl does: every token of
a sparse layer takes the expert that its task's gate chooses, none is dropped, pads take none.
It is one file, over 400 lines, so that a user reads all the code that trust_remote_code runs in it.

B sequences, S tokens of the longest, T = B * S, D hidden size, E experts, G gates, C outputs.
Source of the routing: "Sparsely Activated Mixture-of-Experts are Robust Multi-Task Learners".
"""

from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration_ds_moe_mtl import DsMoeMtlConfig

_GELU = partial(nn.functional.gelu, approximate="none")
_TANH_GELU = partial(nn.functional.gelu, approximate="tanh")

_ACTIVATIONS = {
    "gelu": (_GELU, False),
    "gelu_tanh": (_TANH_GELU, False),
    "geglu": (_GELU, True),
    "geglu_tanh": (_TANH_GELU, True),
    "swiglu": (nn.functional.silu, True),
}
"""Of an FFN: its function, and whether it is gated. A gated one's first layer gives two halves, of
which the first goes through the function and is then multiplied by the second."""


class _Call(NamedTuple):
    """What the sparse layers know of a forward call: each sequence's gate, and the real tokens."""

    gates_B: torch.Tensor
    real_BS: torch.Tensor


_CALL: ContextVar[_Call] = ContextVar("ds_moe_mtl_call")


def _activate(h, activation):
    """Return what stands between the two layers of an FFN, from its first layer's output h."""
    function, gated = _ACTIVATIONS[activation]
    if not gated:
        return function(h)
    activated, factor = h.chunk(2, dim=-1)
    return function(activated) * factor


class _FeedForward(nn.Module):
    def __init__(self, hidden_size, inner, activation, bias):
        super().__init__()
        halves = 2 if _ACTIVATIONS[activation][1] else 1
        self.fc1 = nn.Linear(hidden_size, halves * inner, bias=bias)
        self.fc2 = nn.Linear(inner, hidden_size, bias=bias)
        self.activation = activation

    def forward(self, x):
        return self.fc2(_activate(self.fc1(x), self.activation))


class _Gates(nn.Module):
    """All gates of a layer: a matrix [G * E, D]; of merged experts, a table of logits [G, E].

    With gate_embedding the matrix is a product of a vector a gate and a generator they share.
    """

    def __init__(self, hidden_size, routing):
        super().__init__()
        gates, experts, width = (
            routing[key] for key in ("num_gates", "num_experts", "gate_embedding")
        )
        self.shape = (gates, experts, hidden_size)
        if routing["combine"] == "merged":
            self.shape = (gates, experts)
            self.weight = nn.Parameter(torch.zeros(gates, experts))
        elif width:
            self.vectors = nn.Parameter(torch.zeros(gates, width))
            self.generator = nn.Parameter(torch.zeros(width, experts * hidden_size))
        else:
            self.weight = nn.Parameter(torch.zeros(gates * experts, hidden_size))

    def forward(self):
        """Return the matrices [G, E, D], or the table [G, E], at least in float32."""
        found = self.weight if hasattr(self, "weight") else self.vectors @ self.generator
        found = found.view(self.shape)
        return found.to(torch.promote_types(torch.float32, found.dtype))


class _Gate(nn.Module):
    def __init__(self, hidden_size, routing):
        super().__init__()
        self.wg = _Gates(hidden_size, routing)


class _MoE(nn.Module):
    """A layer's experts. Its output is 0 for pads, which no real token sees."""

    def __init__(self, hidden_size, routing, ffn):
        super().__init__()
        form = (ffn["activation"], ffn["bias"])
        self.routing = routing
        self.shared = _FeedForward(hidden_size, ffn["shared"], *form) if ffn["shared"] else None
        self.gate = _Gate(hidden_size, routing)
        self.experts = nn.ModuleList(
            _FeedForward(hidden_size, ffn["inner"], *form) for _ in range(routing["num_experts"])
        )

    def forward(self, x_BSD):
        call = _CALL.get()
        of_call = self._merged if self.routing["combine"] == "merged" else self._routed
        y_BSD = of_call(x_BSD, call)
        return y_BSD if self.shared is None else y_BSD + self.shared(x_BSD)

    def _routed(self, x_BSD, call):
        weight_BED = self.gate.wg()[call.gates_B]
        wide_BSD = x_BSD.to(weight_BED.dtype)
        if self.routing["route_by"] == "sequence":  # one decision, by the mean of its tokens
            real_BS1 = call.real_BS[..., None].to(wide_BSD.dtype)
            wide_BSD = (wide_BSD * real_BS1).sum(1, True) / real_BS1.sum(1, True).clamp(min=1)
        logits_BSE = wide_BSD @ weight_BED.transpose(1, 2)
        expert_BS = logits_BSE.argmax(-1)
        prob_BS = logits_BSE.softmax(-1).gather(-1, expert_BS[..., None])[..., 0]
        scale_BS = prob_BS if self.routing["gate_scale"] == "paper" else prob_BS / prob_BS.detach()
        expert_BS = torch.where(call.real_BS, expert_BS, -1)
        scale_T = scale_BS.expand(call.real_BS.shape).reshape(-1)
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        y_TD = torch.zeros_like(x_TD)
        for number, expert in enumerate(self.experts):
            rows = (expert_BS.reshape(-1) == number).nonzero()[:, 0]
            y = expert(x_TD[rows]) * scale_T[rows, None]
            y_TD = y_TD.index_add(0, rows, y.to(y_TD.dtype))
        return y_TD.view(x_BSD.shape)

    def _merged(self, x_BSD, call):
        shares_GE = self.gate.wg().softmax(-1)
        y_BSD = torch.zeros_like(x_BSD)
        for gate in call.gates_B.unique().tolist():
            rows = (call.gates_B == gate).nonzero()[:, 0]
            y = self._mixture(shares_GE[gate], x_BSD[rows])
            y_BSD = y_BSD.index_add(0, rows, y)
        return y_BSD

    def _mixture(self, shares_E, x):
        def mix(tensors):
            if tensors[0] is None:  # a layer without biases
                return None
            kinds = torch.stack([tensor.to(shares_E.dtype) for tensor in tensors])
            return torch.tensordot(shares_E, kinds, 1).to(x.dtype)

        def layer(name):
            layers = [getattr(expert, name) for expert in self.experts]
            return mix([own.weight for own in layers]), mix([own.bias for own in layers])

        h = nn.functional.linear(x, *layer("fc1"))
        return nn.functional.linear(_activate(h, self.experts[0].activation), *layer("fc2"))


class _RoutedFFN(nn.Module):
    """Stands where a transformer layer's FFN, or the first part of it, stood."""

    def __init__(self, moe):
        super().__init__()
        self.moe = moe

    def forward(self, hidden_states):
        return self.moe(hidden_states)


class _Encoder(nn.Module):
    """The transformers encoder with experts in its sparse layers."""

    def __init__(self, config):
        super().__init__()
        if config.first_position is None:
            raise ValueError(
                "the folder was written by an older ds_moe_mtl; allowed: its own code "
                "(trust_remote_code=True), or `ds-moe-mtl export --to huggingface` of it again"
            )
        inner = config.encoder_config()
        has_sdpa = MODEL_MAPPING[type(inner)]._supports_sdpa
        inner._attn_implementation = config._attn_implementation if has_sdpa else "eager"
        self.transformer = AutoModel.from_config(inner)
        if not config.pooler and hasattr(self.transformer, "pooler"):
            self.transformer.pooler = None
        for place in config.expert_places:
            moe = _MoE(inner.hidden_size, config.routing, config.ffn)
            self._put(place, _RoutedFFN(moe))
        for place in config.emptied_places:
            self._put(place, nn.Identity())
        self.first_position = config.first_position
        self.token_types = config.token_types

    def _put(self, place, module):
        holder, _, name = place.rpartition(".")
        setattr(self.transformer.get_submodule(holder), name, module)

    def forward(self, input_ids_BS, mask_BS, types_BS, gates_B):
        """Return the last hidden states [B, S, D]; pads may stand on either side."""
        inputs = {}
        if self.token_types:
            known = types_BS is not None and self.token_types > 1
            inputs["token_type_ids"] = types_BS if known else torch.zeros_like(input_ids_BS)
        real_BS = (mask_BS != 0).long()
        if self.first_position:  # RoBERTa and its like count no token of pads, also in a text
            real_BS = real_BS * (input_ids_BS != self.first_position - 1)
            positions_BS = real_BS.cumsum(1) * real_BS + self.first_position - 1
        else:
            positions_BS = (real_BS.cumsum(1) - 1).clamp(min=0)
        token = _CALL.set(_Call(gates_B, mask_BS != 0))
        try:
            out = self.transformer(
                input_ids=input_ids_BS, attention_mask=mask_BS, position_ids=positions_BS, **inputs
            )
        finally:
            _CALL.reset(token)
        return out[0]

    def pool(self, cls_BD):
        """Return [CLS] states through the pooler, or as they are without one."""
        pooler = getattr(self.transformer, "pooler", None)
        return cls_BD if pooler is None else pooler(cls_BD[:, None])


class _Heads(nn.Module):
    """The heads in the order of their first tasks; tasks with one shared name have one head."""

    def __init__(self, config):
        super().__init__()
        keys = [(head["shared"], "" if head["shared"] else head["name"]) for head in config.heads]
        own = list(dict.fromkeys(keys))
        self.place = [own.index(key) for key in keys]
        rows = [config.heads[keys.index(key)] for key in own]
        hidden_size = config.hidden_size
        self.linears = nn.ModuleList(
            nn.Linear(hidden_size * (3 if row["spans"] else 1), row["outputs"]) for row in rows
        )


class DsMoeMtlPreTrainedModel(PreTrainedModel):
    """One encoder, many tasks. A task is chosen by `set_task`, `config.task` or `task=`."""

    config_class = DsMoeMtlConfig
    config: DsMoeMtlConfig
    base_model_prefix = "ds_moe_mtl"
    _supports_sdpa = True

    auto_class = ""
    """The AutoModel that opens the class."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = _Encoder(config)
        self.heads = _Heads(config)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def set_task(self, task):
        """Choose the task that calls without `task` are for, and return the model."""
        self.config.task = task
        return self

    def task_numbers(self, task, rows):
        """Return the task of each of `rows` sequences, as numbers.

        task: a name, or one name or number a sequence; None for config.task. Raises ValueError for
        a task that the model does not have, or that another class answers.
        """
        names = self.config.task_names
        if task is None or isinstance(task, str):
            task = [self.config.task if task is None else task] * rows
        values = task.tolist() if isinstance(task, torch.Tensor) else list(task)
        if len(values) != rows:
            raise ValueError(f"{len(values)} tasks for {rows} sequences; allowed: one a sequence")
        for value in set(values):
            if not isinstance(value, str) and not 0 <= value < len(names):
                raise ValueError(f"task number {value}; allowed: 0 to {len(names) - 1}")
            row = self.config.task_row(value if isinstance(value, str) else names[value])
            auto = _AUTO_OF_KIND.get(row["kind"], "AutoModelForSequenceClassification")
            if auto != self.auto_class:
                raise ValueError(f"task {row['name']!r} is {row['kind']}: open it with {auto}")
        return [names.index(value) if isinstance(value, str) else int(value) for value in values]

    def hidden_states(self, input_ids, attention_mask, token_type_ids, numbers):
        """Return the last hidden states [B, S, D] of sequences of these tasks."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        gates = [self.config.gate_of_task[number] for number in numbers]
        gates_B = torch.tensor(gates, device=input_ids.device)
        return self.encoder(input_ids, attention_mask, token_type_ids, gates_B)

    def outputs_of(self, numbers, head):
        """Return head(number, rows) of each task's rows, put together: -inf beyond its outputs."""
        of_tasks = sorted(set(numbers))
        if len(of_tasks) == 1:
            return head(of_tasks[0], slice(None))
        widest = max(self.config.heads[number]["outputs"] for number in of_tasks)
        logits = None
        for number in of_tasks:
            rows = [row for row, own in enumerate(numbers) if own == number]
            found = head(number, rows)
            if logits is None:
                shape = (len(numbers), *found.shape[1:-1], widest)
                logits = found.new_full(shape, -torch.inf)
            logits[rows, ..., : found.shape[-1]] = found
        return logits

    def linear(self, number):
        """Return a task's head."""
        return self.heads.linears[self.heads.place[number]]

    def one_task(self, numbers):
        """Return the number of the one task of a call with labels. Raises ValueError for more."""
        if len(set(numbers)) > 1:
            raise ValueError("labels with several tasks in one call; allowed: one task")
        return numbers[0]


_AUTO_OF_KIND = {
    "tags": "AutoModelForTokenClassification",
    "answer": "AutoModelForQuestionAnswering",
}


class DsMoeMtlForSequenceClassification(DsMoeMtlPreTrainedModel):
    """Reads [CLS]: classes, labels, or a score where the task's head has one output."""

    auto_class = "AutoModelForSequenceClassification"

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        labels=None,
        task=None,
        word_spans=None,
        return_dict=None,
    ):
        """Return logits [B, C] of the task's outputs and, with labels [B], the mean loss.

        labels: numbers of classes, scores, or [B, C] of several labels. Sequences of several tasks
        in one call get -inf beyond their own outputs. word_spans [B, 2, 2]: for a word-sense task,
        the tokens [start, end) of its two words. Pads are then on the right.
        """
        numbers = self.task_numbers(task, len(input_ids))
        hidden_BSD = self.hidden_states(input_ids, attention_mask, token_type_ids, numbers)
        first_B = torch.zeros_like(input_ids[:, 0])  # [CLS]: the first token that is no pad
        if attention_mask is not None:
            first_B = (attention_mask != 0).int().argmax(1)
        cls_BD = hidden_BSD[torch.arange(len(hidden_BSD), device=hidden_BSD.device), first_B]
        cls_BD = self.dropout(self.encoder.pool(cls_BD))

        def head(number, rows):
            if not self.config.heads[number]["spans"]:
                return self.linear(number)(cls_BD[rows])
            if word_spans is None:
                name = self.config.task_names[number]
                raise ValueError(f"task {name!r} reads two words of the text: give word_spans")
            words_BW = self.dropout(_word_states(hidden_BSD[rows], word_spans[rows]))
            return self.linear(number)(torch.cat([cls_BD[rows], words_BW], dim=1))

        logits_BC = self.outputs_of(numbers, head)
        loss = None
        if labels is not None:
            kind = self.config.tasks[self.one_task(numbers)]["kind"]
            loss = _loss(kind, logits_BC, labels)
        if return_dict is False:
            return (logits_BC,) if loss is None else (loss, logits_BC)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)


class DsMoeMtlForTokenClassification(DsMoeMtlPreTrainedModel):
    """Reads every token: tags. A word's tag is that of its first piece."""

    auto_class = "AutoModelForTokenClassification"

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        labels=None,
        task=None,
        return_dict=None,
    ):
        """Return logits [B, S, C] and, with labels [B, S] (-100: none), the mean loss."""
        numbers = self.task_numbers(task, len(input_ids))
        hidden_BSD = self.hidden_states(input_ids, attention_mask, token_type_ids, numbers)
        hidden_BSD = self.dropout(hidden_BSD)
        logits_BSC = self.outputs_of(
            numbers, lambda number, rows: self.linear(number)(hidden_BSD[rows])
        )
        loss = None
        if labels is not None:
            self.one_task(numbers)
            loss = nn.functional.cross_entropy(logits_BSC.flatten(0, 1), labels.flatten())
        if return_dict is False:
            return (logits_BSC,) if loss is None else (loss, logits_BSC)
        return TokenClassifierOutput(loss=loss, logits=logits_BSC)


class DsMoeMtlForQuestionAnswering(DsMoeMtlPreTrainedModel):
    """Reads every token: its scores as an answer's first and as its last."""

    auto_class = "AutoModelForQuestionAnswering"

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        start_positions=None,
        end_positions=None,
        task=None,
        return_dict=None,
    ):
        """Return start_logits and end_logits [B, S] and, with positions [B], the mean loss."""
        numbers = self.task_numbers(task, len(input_ids))
        hidden_BSD = self.hidden_states(input_ids, attention_mask, token_type_ids, numbers)
        hidden_BSD = self.dropout(hidden_BSD)
        logits_BS2 = self.outputs_of(
            numbers, lambda number, rows: self.linear(number)(hidden_BSD[rows])
        )
        start_BS, end_BS = logits_BS2.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            pairs = ((start_BS, start_positions), (end_BS, end_positions))
            loss = sum(nn.functional.cross_entropy(*pair) for pair in pairs) / 2
        if return_dict is False:
            return (start_BS, end_BS) if loss is None else (loss, start_BS, end_BS)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start_BS, end_logits=end_BS)


def _loss(kind, logits_BC, labels):
    """Return the mean loss of one task's sequences."""
    if kind == "multilabel":
        wanted_BC = labels.to(logits_BC.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits_BC, wanted_BC)
    if logits_BC.shape[1] == 1:
        return nn.functional.mse_loss(logits_BC[:, 0], labels.to(logits_BC.dtype).view(-1))
    return nn.functional.cross_entropy(logits_BC, labels.view(-1))


def _word_states(hidden_BSD, word_spans_B22):
    """Return [B, 2 * D]: each of the two words as the mean of its pieces."""
    place_S = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)
    begin_B21, end_B21 = word_spans_B22[..., :1], word_spans_B22[..., 1:]
    inside_B2S = ((place_S >= begin_B21) & (place_S < end_B21)).to(hidden_BSD.dtype)
    words_B2D = inside_B2S @ hidden_BSD / inside_B2S.sum(-1, True).clamp(min=1)
    return words_B2D.flatten(1)

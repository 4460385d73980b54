"""Task heads: all tasks' outputs in one product, so that every head gets a gradient on every rank.

A head is known inside by its place among the heads, not by the task's name: a name that a user
chose may be an attribute of a module ("type", "train"), or a word that DeepSpeed looks for in the
names of parameters. On disk, in a model folder, it has the task's name.

B sequences, T tokens, U units (tokens that a head reads), D hidden size, C outputs of the widest
task, K outputs of all tasks together.
Source: "Sparsely Activated MoE are Robust Multi-Task Learners", eq. 7-8 and sec. 4.4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ds_moe_mtl.models.dropout import Dropout

HEAD_INIT_STD = 0.02
"""Same paper, sec. 4.4."""

TOKEN_FORMS = ("tags", "answer")
"""HeadSpec.form of heads that read tokens."""

INSIDE, ON_DISK = "linears", "tasks"
"""What the heads stand under in a network's state and in a model folder's."""


@dataclass(frozen=True)
class HeadSpec:
    """What a head needs to know of its task.

    outputs: for a sequence, or for a unit where it reads tokens. spans: reads [CLS] and the task's
    two words. shared: the name of a head that several tasks have in common, "" for one of its own.
    form: what the outputs are, and so the loss: "classes" (scores too), "labels" (each by itself),
    or, of a head that reads tokens, "tags" (classes of a word), "answer" (first and last token).
    class_weights: of the loss; empty: all 1.
    """

    name: str
    outputs: int
    spans: bool = False
    shared: str = ""
    form: str = "classes"
    class_weights: tuple[float, ...] = ()

    @property
    def reads(self) -> str:
        """What the head reads: "tokens", "words" (beside [CLS]), or "cls"."""
        if self.form in TOKEN_FORMS:
            return "tokens"
        return "words" if self.spans else "cls"

    @property
    def key(self) -> tuple[str, str]:
        """What tells the head from the network's others: a shared name is no task's."""
        return ("shared", self.shared) if self.shared else ("task", self.name)


class TaskHeads(nn.Module):
    """One linear head a task, or one for all tasks that share it."""

    def __init__(self, hidden_size: int, specs: Sequence[HeadSpec], dropout: float) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.dropout = Dropout(dropout)
        self.linears = nn.ModuleList()
        for spec in own_heads(self.specs):
            head = nn.Linear(hidden_size * (3 if spec.spans else 1), spec.outputs)
            nn.init.normal_(head.weight, std=HEAD_INIT_STD)
            nn.init.zeros_(head.bias)
            self.linears.append(head)
        self.register_buffer("column", self._columns(("cls", "words")), persistent=False)
        self.register_buffer("unit_column", self._columns(("tokens",)), persistent=False)
        self.register_load_state_dict_pre_hook(_take_names_of_disk)

    def head(self, key: tuple[str, str]) -> nn.Linear | None:
        """Return the head of that `HeadSpec.key`, or None."""
        keys = [spec.key for spec in own_heads(self.specs)]
        return self.linears[keys.index(key)] if key in keys else None

    @property
    def reads_tokens(self) -> bool:
        """Whether a task's head reads tokens."""
        return any(spec.reads == "tokens" for spec in self.specs)

    def _columns(self, reads: Sequence[str]) -> torch.Tensor:
        """Return [tasks, C]: the column of each task's outputs in the joint product; -1: none.

        reads: the heads of the product, in its order; other tasks' have no column there.
        """
        heads = [spec for spec in self.specs if spec.reads in reads]
        widest = max((spec.outputs for spec in heads), default=1)
        column = torch.full((len(self.specs), widest), -1, dtype=torch.long)
        firsts, first = {}, 0
        for read in reads:
            for spec in (spec for spec in own_heads(self.specs) if spec.reads == read):
                firsts[spec.key] = first
                first += spec.outputs
        for task, spec in enumerate(self.specs):
            if spec.reads in reads:
                start = firsts[spec.key]
                column[task, : spec.outputs] = torch.arange(start, start + spec.outputs)
        return column

    def forward(
        self,
        hidden_TD: torch.Tensor,
        cls_BD: torch.Tensor,
        starts_B: torch.Tensor,
        task_ids_B: torch.Tensor,
        spans_B22: torch.Tensor,
        longest_word: int | None = None,
    ) -> torch.Tensor:
        """Return float32 outputs [B, C], -inf beyond a task's own; cls_BD may be pooled.

        longest_word: as in word_states.
        """
        cls_BD = self.dropout(cls_BD)
        outputs = [self._product(cls_BD, "cls")]
        if any(spec.spans for spec in self.specs):
            words_BW = self.dropout(word_states(hidden_TD, starts_B, spans_B22, longest_word))
            outputs.append(self._product(torch.cat([cls_BD, words_BW], dim=1), "words"))
        joint_BK = torch.cat(outputs, dim=1).float()
        return _own_columns(joint_BK, self.column[task_ids_B])

    def of_units(
        self, hidden_TD: torch.Tensor, units_U: torch.Tensor, task_ids_U: torch.Tensor
    ) -> torch.Tensor:
        """Return float32 outputs [U, C] for the tokens units_U, -inf beyond a task's own.

        Every head that reads tokens is in the product, so U = 0 gives each a gradient of zeros.
        """
        joint_UK = self._product(self.dropout(hidden_TD[units_U]), "tokens").float()
        return _own_columns(joint_UK, self.unit_column[task_ids_U])

    def _product(self, x_BX: torch.Tensor, reads: str) -> torch.Tensor:
        pairs = zip(own_heads(self.specs), self.linears, strict=True)
        heads = [head for spec, head in pairs if spec.reads == reads]
        if not heads:
            return x_BX.new_zeros((x_BX.shape[0], 0))
        if not torch.is_grad_enabled():
            # One product a head: what a task's head says depends on no other head, to the bit.
            return torch.cat([head(x_BX) for head in heads], dim=1)
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        return nn.functional.linear(x_BX, weight, bias)


def _own_columns(joint_BK: torch.Tensor, column_BC: torch.Tensor) -> torch.Tensor:
    """Return each row's own columns [B, C], -inf where column_BC is -1."""
    if joint_BK.shape[1] == 0:  # no task has a head of this kind
        joint_BK = joint_BK.new_zeros((joint_BK.shape[0], 1))
    return joint_BK.gather(1, column_BC.clamp(min=0)).masked_fill(column_BC < 0, -torch.inf)


def own_heads(specs: Sequence[HeadSpec]) -> list[HeadSpec]:
    """Return one spec a head, in the order of the tasks."""
    heads: dict[tuple[str, str], HeadSpec] = {}
    for spec in specs:
        heads.setdefault(spec.key, spec)
    return list(heads.values())


def names_on_disk(specs: Sequence[HeadSpec]) -> list[str]:
    """Return what each head is called in a model folder: its task's name, or the shared one.

    A task that is called as a shared head is told from it by a colon, which no task's name has.
    """
    heads = own_heads(specs)
    shared = {spec.shared for spec in heads if spec.shared}
    return [
        spec.shared or (f"task:{spec.name}" if spec.name in shared else spec.name) for spec in heads
    ]


def to_disk(
    state: Mapping[str, torch.Tensor], specs: Sequence[HeadSpec], prefix: str = "heads."
) -> dict[str, torch.Tensor]:
    """Return a network's state under the names that a model folder has."""
    names = {f"{place}": name for place, name in enumerate(names_on_disk(specs))}
    return _renamed(state, f"{prefix}{INSIDE}.", f"{prefix}{ON_DISK}.", names)


def from_disk(
    state: Mapping[str, torch.Tensor], specs: Sequence[HeadSpec], prefix: str = "heads."
) -> dict[str, torch.Tensor]:
    """Return a model folder's state under a network's own names; others stay as they are."""
    names = {name: f"{place}" for place, name in enumerate(names_on_disk(specs))}
    return _renamed(state, f"{prefix}{ON_DISK}.", f"{prefix}{INSIDE}.", names)


def _renamed(
    state: Mapping[str, torch.Tensor], before: str, after: str, names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in state.items():
        name, _, rest = key.removeprefix(before).rpartition(".")
        is_head = key.startswith(before) and name in names
        renamed[f"{after}{names[name]}.{rest}" if is_head else key] = tensor
    return renamed


def _take_names_of_disk(heads: "TaskHeads", state: dict, prefix: str, *_) -> None:
    """Let a model folder's names, and those of checkpoints of before, stand for the heads' own."""
    renamed = from_disk(state, heads.specs, prefix)
    if renamed.keys() != state.keys():
        state.clear()
        state.update(renamed)


def word_states(
    hidden_TD: torch.Tensor,
    starts_B: torch.Tensor,
    spans_B22: torch.Tensor,
    longest_word: int | None = None,
) -> torch.Tensor:
    """Return [B, 2 * D]: each of the two words as the mean of its pieces (our choice).

    spans_B22 holds [start, end) within the sequence, -1 where a sequence has no words; there the
    first token stands in, whose output no loss reads. longest_word: pieces of the longest word, at
    least 1; None reads it from spans_B22.
    """
    if spans_B22.shape[0] == 0:
        return hidden_TD.new_zeros((0, 2 * hidden_TD.shape[1]))
    first_B2 = spans_B22[..., 0].clamp(min=0)
    size_B2 = (spans_B22[..., 1] - spans_B22[..., 0]).clamp(min=1)
    longest_word = int(size_B2.max()) if longest_word is None else longest_word
    piece_W = torch.arange(longest_word, device=hidden_TD.device)
    within_B2W = piece_W < size_B2[..., None]
    offset_B2W = torch.where(within_B2W, piece_W, torch.zeros_like(piece_W))
    row_B2W = starts_B[:, None, None] + first_B2[..., None] + offset_B2W
    states_B2WD = hidden_TD[row_B2W] * within_B2W[..., None]
    mean_B2D = states_B2WD.sum(dim=2) / size_B2[..., None]
    return mean_B2D.flatten(1).to(hidden_TD.dtype)

"""A model card: README.md of a folder that transformers or a person opens."""

from collections.abc import Mapping, Sequence

from ds_moe_mtl.models.description import encoder_depth
from ds_moe_mtl.models.portable.folder import KINDS
from ds_moe_mtl.models.pretrained import MINILM_PACKAGED
from ds_moe_mtl.tasks import TOKEN_KINDS, TaskSpec

_SENTENCE_ENCODER = (
    "The encoder is a fine-tuned sentence encoder. Its training data included MNLI and SNLI, "
    "probably QQP's pairs, QNLI's source and Flickr30k captions; scores on data of these, and on "
    "STS-B, which draws on both kinds, are not clean."
)


def model_card(
    description: Mapping,
    results: Mapping | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    licence: str | None = None,
) -> str:
    """Return the card of a model: its tasks, data, dev scores, limits, and how it is used.

    description: of its folder. results: results.json of its run, None where there is none.
    intervals: by task, the ends of the 95% interval of its score in percent. licence: None where
    nobody gave one, and the card then says that it is unknown.
    """
    import yaml

    tasks = [TaskSpec.from_dict(row) for row in description["tasks"]]
    kind = "token" if all(row.kind == "tags" for row in tasks) else "text"
    head = {"library_name": "transformers", "pipeline_tag": f"{kind}-classification"}
    head["tags"] = ["ds_moe_mtl", "multi-task", description["kind"]]
    if licence is not None:
        head["license"] = licence
    about = description["about"]
    notes = (results or {}).get("notes") or about.get("notes") or []
    encoder = (about.get("encoder") or {}).get("name", "unknown")
    lines = [*notes, *_limits(tasks, results, licence)]
    if encoder == MINILM_PACKAGED:
        lines.insert(0, _SENTENCE_ENCODER)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}, one encoder\n",
        f"{_kind(description)} It was trained with ds_moe_mtl from {_plain(encoder)}.\n",
        "## Tasks and scores\n",
        _table(tasks, results, intervals),
        "## Use\n",
        _use(tasks),
        "## Limits\n",
        "".join(f"- {_plain(line)}\n" for line in lines),
    ]
    return "\n".join(parts)


def _kind(description: Mapping) -> str:
    routing, layers = description["routing"], encoder_depth(description)
    if routing is None:
        return f"A dense encoder of {layers} layers with a head for each task."
    how = "merged by the task"
    if routing["combine"] == "top1":
        how = f"of which each {routing['route_by']} takes one, chosen by its task's gate"
    return (
        f"A sparse encoder of {layers} layers: {routing['num_experts']} experts in a layer, {how} "
        f"({routing['num_gates']} gates)."
    )


def _table(tasks: Sequence[TaskSpec], results: Mapping | None, intervals: Mapping | None) -> str:
    lines = ["| task | kind | answers | trained on | metric | dev | 95% | rows |", "|---" * 8 + "|"]
    for row in tasks:
        score = ((results or {}).get("tasks") or {}).get(row.name)
        found = (results or {}).get("data", {}).get(row.name, {})
        labels = [_plain(label) for label in row.labels]
        shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
        ends = (intervals or {}).get(row.name)
        cells = [
            row.name,
            row.kind,
            shown or "a number",
            f"{_source(row)}{', ' + format(found['examples'], ',') if 'examples' in found else ''}",
            row.metric,
            f"{score['value']:.1f}" if score else "not known",
            f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else "not known",
            f"{score['examples']:,}" if score else "not known",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        "\nThe interval is what other dev rows might have given, and nothing of other seeds."
    )
    return "\n".join(lines) + "\n"


def _source(row: TaskSpec) -> str:
    """Return where a task's rows are from: a set's name; of a user's own files no path."""
    if row.hub:
        return _plain("/".join(part for part in row.hub if part))
    return "own files" if row.train_file else _plain(row.folder or row.name)


def _use(tasks: Sequence[TaskSpec]) -> str:
    name = next((row.name for row in tasks if row.kind not in TOKEN_KINDS), None)
    if name is None:
        auto = f"AutoModelFor{KINDS[tasks[0].kind]}"
        return f"`{auto}.from_pretrained(FOLDER, trust_remote_code=True)` opens this folder.\n"
    pairs = [row.name for row in tasks if len(row.text) == 2 or row.choices]
    example = '{"text": "one text", "text_pair": "its second"}' if name in pairs else '"a text"'
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", model=FOLDER, trust_remote_code=True)\n'
        f'classify.model.set_task("{name}")\n'
        f"classify([{example}], truncation=True)\n```\n\n"
        "`FOLDER` is this folder or its name on the Hub. The code that transformers runs is the "
        "two Python files beside the weights."
        + (f" Pairs of texts go to: {', '.join(pairs)}.\n" if pairs else "\n")
    )


def _limits(tasks: Sequence[TaskSpec], results: Mapping | None, licence: str | None) -> list[str]:
    lines = []
    if results is None:
        lines.append("No scores came with the model, so none are told here.")
    lengths = sorted({row.max_length for row in tasks})
    lines.append(f"Texts were cut at {' or '.join(map(str, lengths))} tokens in training.")
    for row in tasks:
        if row.kind in ("ranking", "options"):
            lines.append(
                f"{row.name}: scores one pair of text and choice; the choice with the "
                f"{'largest last logit' if row.kind == 'ranking' else 'largest score'} is the "
                f"answer."
            )
        if row.kind == "span":
            lines.append(f"{row.name}: needs word_spans, which pipelines do not give.")
        if row.kind == "multilabel":
            ends = dict.fromkeys(row.label_thresholds)
            shown = ", ".join(f"{end:.2f}" for end in row.label_thresholds if len(ends) > 1)
            shown = shown or f"{row.label_thresholds[0]:.2f}"
            lines.append(f"{row.name}: a label is given from these probabilities on: {shown}.")
        if row.kind in TOKEN_KINDS:
            lines.append(f"{row.name}: opens with AutoModelFor{KINDS[row.kind]}.")
        if row.kind == "tags":
            lines.append(f"{row.name}: a word's tag is that of its first piece.")
        if row.prefix:
            lines.append(f"{row.name}: put {row.prefix!r} before the first text.")
        if row.joined:
            lines.append(f"{row.name}: {row.joined} follows {row.text[0]} after a blank.")
    if licence is None:
        lines.append("The licence is unknown: nobody gave one.")
    return lines


def _plain(text: str) -> str:
    """Return text that can neither end a table's cell nor be read as markup."""
    out = "".join(part if part.isprintable() else " " for part in str(text))
    for mark in "\\`|<>[]*_#":
        out = out.replace(
            mark, "\\" + mark if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark]
        )
    return out

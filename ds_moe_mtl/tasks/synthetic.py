"""The embedded suite: eight small generated tasks that need no download.

Short made-up scenes ("Late at night a nurse lost a silver key at the harbour.") and a few other
patterns, in English. They show that a model learns several tasks at once and what the tasks do to
each other; they say nothing about real data. No text of a dev split occurs in any train split.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ds_moe_mtl.tasks import lexicon
from ds_moe_mtl.tasks.spec import TaskSpec

SEED = 20
DEV_SHARE = 6  # one in six combinations of words is kept for the dev splits

Row = dict[str, object]

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


def _toy(name: str, size: int, text: tuple[str, ...], kind: str = "classification", **more):
    return TaskSpec(
        name=f"toy_{name}",
        kind=kind,
        text=text,
        published_size=size,
        max_length=64,
        generated=True,
        **more,
    )


EMBEDDED = (
    _toy(
        "inference",
        1_000,
        ("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
    ),
    _toy("follows", 400, ("premise", "hypothesis"), labels=("entailment", "not_entailment")),
    _toy("similarity", 800, ("sentence1", "sentence2"), "regression", metric="spearman"),
    _toy("paraphrase", 400, ("sentence1", "sentence2"), labels=("different", "same")),
    _toy("review", 600, ("text",), labels=("negative", "positive")),
    _toy(
        "cause",
        400,
        ("premise",),
        "ranking",
        labels=("False", "True"),
        choices=("choice1", "choice2"),
        joined="question",
        phrases=(
            ("cause", "What was the cause of this?"),
            ("effect", "What happened as a result?"),
        ),
    ),
    _toy(
        "sense",
        800,
        ("sentence1", "sentence2"),
        "span",
        labels=("False", "True"),
        spans=("start1", "end1", "start2", "end2"),
    ),
    _toy("order", 800, ("sentence",), labels=("shuffled", "intact"), metric="matthews"),
)
DEV_SIZE = 150

# Pairs that ask for the same comparison of scenes, and the task that has nothing to gain from
# any other: it looks at the order of words, the others at their meaning.
RELATED = (("toy_inference", "toy_follows"), ("toy_similarity", "toy_paraphrase"))
UNRELATED = "toy_order"


def generate(name: str, split: str) -> dict[str, list]:
    """The columns of an embedded task's "train" or "validation" split; always the same rows."""
    spec = next(spec for spec in EMBEDDED if spec.name == name)
    is_dev = split != "train"
    random = Random(f"{name} {split} {SEED}")
    rows: dict[tuple, Row] = {}
    while len(rows) < (DEV_SIZE if is_dev else spec.published_size):
        row = _MAKERS[name](random, is_dev)
        rows.setdefault(tuple(row[column] for column in spec.text + spec.choices), row)
    return {column: [row[column] for row in rows.values()] for column in spec.columns}


@dataclass(frozen=True)
class Scene:
    """Who did what; where, when and with whom are rows of the lexicon, or None: not told."""

    agent: str
    action: tuple[str, str, str, str]
    place: tuple[str, str] | None
    time: tuple[str, str] | None
    company: tuple[str, str] | None


def _scene(random: Random, is_dev: bool) -> Scene:
    while True:
        agent, action = random.choice(lexicon.AGENTS), random.choice(lexicon.ACTIONS)
        if random.random() < 0.4:  # told the other way round, so that no action means a label
            action = (action[3], action[3], action[3], action[0])
        if _scene_for_dev(agent, action) == is_dev:
            break
    place = random.choice(lexicon.PLACES)
    time = random.choice(lexicon.TIMES)
    company = random.choice(lexicon.COMPANIONS)
    missing = random.choice(("place", "time", "company"))
    return Scene(
        agent,
        action,
        None if missing == "place" else place,
        None if missing == "time" else time,
        None if missing == "company" else company,
    )


def _told(random: Random, scene: Scene, agent: str = "", action: str = "") -> str:
    """The scene as a sentence; each circumstance in one of its wordings."""
    place, time, company = (
        random.choice(facet) if facet else "" for facet in (scene.place, scene.time, scene.company)
    )
    words = [agent or scene.agent, action or scene.action[0], company, place]
    words = [time, *words] if random.random() < 0.3 else [*words, time]
    return _sentence(" ".join(word for word in words if word))


def _hypothesis(random: Random, scene: Scene) -> tuple[str, int]:
    """A sentence about the scene, and whether it follows from, is open in, or contradicts it.

    It names the action and one circumstance. Whether that is told, told otherwise or not told is
    seen in the scene alone.
    """
    facets = {
        "place": (scene.place, lexicon.PLACES),
        "time": (scene.time, lexicon.TIMES),
        "company": (scene.company, lexicon.COMPANIONS),
    }
    label = random.choice((ENTAILMENT, NEUTRAL, CONTRADICTION))
    told = [name for name, (value, _) in facets.items() if value]
    untold = [name for name, (value, _) in facets.items() if not value]
    action = random.choice(scene.action[:3])
    name = random.choice(untold if label == NEUTRAL else told)
    value, choices = facets[name]
    if label == NEUTRAL:
        value = random.choice(choices)
    elif label == CONTRADICTION:
        if random.random() < 0.5:
            action = scene.action[3]
        else:
            value = random.choice([choice for choice in choices if choice != value])
    agent = random.choice((scene.agent, "somebody"))
    circumstance = {"place": None, "time": None, "company": None, name: value}
    return _told(random, Scene(agent, scene.action, **circumstance), action=action), label


def _inference(random: Random, is_dev: bool) -> Row:
    scene = _scene(random, is_dev)
    hypothesis, label = _hypothesis(random, scene)
    return {"premise": _told(random, scene), "hypothesis": hypothesis, "label": label}


def _follows(random: Random, is_dev: bool) -> Row:
    scene = _scene(random, is_dev)
    wanted = random.random() < 0.5
    while True:
        hypothesis, label = _hypothesis(random, scene)
        if (label == ENTAILMENT) == wanted:
            break
    return {"premise": _told(random, scene), "hypothesis": hypothesis, "label": int(not wanted)}


def _changed(random: Random, scene: Scene, changes: int, is_dev: bool) -> Scene:
    """The scene with that many of its four told facets replaced."""
    choices = {
        "agent": lexicon.AGENTS,
        "action": lexicon.ACTIONS,
        "place": lexicon.PLACES,
        "time": lexicon.TIMES,
        "company": lexicon.COMPANIONS,
    }
    told = [name for name in choices if getattr(scene, name)]
    while True:
        names = sorted(told, key=lambda _: random.random())[:changes]
        values = {name: getattr(scene, name) for name in choices}
        for name in names:
            values[name] = random.choice([c for c in choices[name] if c != values[name]])
        other = Scene(**values)
        if _scene_for_dev(other.agent, other.action) == is_dev:
            return other


def _similarity(random: Random, is_dev: bool) -> Row:
    """Score 0 to 4: how many of the four told facets the two scenes share."""
    scene = _scene(random, is_dev)
    changes = random.choice(range(5))
    other = _changed(random, scene, changes, is_dev)
    return {**_pair(random, scene, other), "label": float(4 - changes)}


def _paraphrase(random: Random, is_dev: bool) -> Row:
    scene = _scene(random, is_dev)
    label = random.choice((0, 1))
    changes = 0 if label else random.choice((1, 2, 3))
    return {**_pair(random, scene, _changed(random, scene, changes, is_dev)), "label": label}


def _pair(random: Random, scene: Scene, other: Scene) -> Row:
    first = second = _told(random, scene)
    while second == first:
        second = _told(random, other, action=random.choice(other.action[:2]))
    return {"sentence1": first, "sentence2": second}


def _review(random: Random, is_dev: bool) -> Row:
    """One judgement, or two against each other of which the main clause's decides."""
    while True:
        label = random.choice((0, 1))
        place = random.choice(lexicon.REVIEWED)
        aspects = random.choice(lexicon.ASPECTS), random.choice(lexicon.ASPECTS)
        good, bad = random.choice(lexicon.GOOD), random.choice(lexicon.BAD)
        if aspects[0] != aspects[1] and _kept_for_dev(place, *aspects, good, bad) == is_dev:
            break
    word, opposite = (good, bad) if label else (bad, good)
    if random.random() < 0.25:
        word = f"anything but {opposite}"
    pattern = random.choice(
        (
            "The {a} and the {b} of the {place} were {x}.",
            "We came to the {place} for the {a}, and the {b} was {x} too.",
            "At this {place} the {a} was {y}, but in the end the {b} was {x}, which counts more.",
            "Although the {a} of the {place} was {y}, the {b} was {x}.",
        )
    )
    text = pattern.format(place=place, a=aspects[0], b=aspects[1], x=word, y=opposite)
    return {"text": text, "label": label}


def _cause(random: Random, is_dev: bool) -> Row:
    """Which of two events led to, or came of, the middle one of a chain."""
    while True:
        chain = random.choice(lexicon.CHAINS)
        agents = random.choice(lexicon.AGENTS), random.choice(lexicon.AGENTS)
        if _kept_for_dev(chain[1], agents[1]) == is_dev:
            break
    question = random.choice(("cause", "effect"))
    right, opposite = (chain[0], chain[2]) if question == "cause" else (chain[2], chain[0])
    other = random.choice([other for other in lexicon.CHAINS if other != chain])
    wrong = opposite if random.random() < 0.5 else random.choice((other[0], other[2]))
    choices = [_sentence(right.format(agents[0])), _sentence(wrong.format(agents[0]))]
    label = random.choice((0, 1))
    return {
        "premise": f"{chain[1]}, as {agents[1]} saw.",
        "question": question,
        "choice1": choices[label],
        "choice2": choices[1 - label],
        "label": label,
    }


def _sense(random: Random, is_dev: bool) -> Row:
    """Whether a word of two senses has the same one in both sentences."""
    word = random.choice(tuple(lexicon.SENSES))
    same = random.random() < 0.5
    first = random.choice((0, 1))
    row: Row = {"label": int(same)}
    texts: list[str] = []
    for part, sense in ((1, first), (2, first if same else 1 - first)):
        while True:
            text = _sense_sentence(random, lexicon.SENSES[word][sense], is_dev)
            if text not in texts:
                break
        texts.append(text)
        start = f" {text.lower()} ".replace(".", " ").replace(",", " ").index(f" {word} ")
        row |= {f"sentence{part}": text, f"start{part}": start, f"end{part}": start + len(word)}
    return row


def _sense_sentence(random: Random, patterns: tuple[str, ...], is_dev: bool) -> str:
    while True:
        pattern, agent = random.choice(patterns), random.choice(lexicon.AGENTS)
        if _kept_for_dev(pattern, agent) == is_dev:
            break
    plain = pattern if "{}" in pattern else f"{pattern}, said {{}}"
    return _sentence(plain.format(agent))


def _order(random: Random, is_dev: bool) -> Row:
    """A scene, or the same with four words in a row turned round."""
    words = _told(random, _scene(random, is_dev)).rstrip(".").split()
    label = random.choice((0, 1))
    if not label:
        first = random.choice(range(1, len(words) - 3))
        words[first : first + 4] = reversed(words[first : first + 4])
    return {"sentence": _sentence(" ".join(words)), "label": label}


def _scene_for_dev(agent: str, action: tuple[str, ...]) -> bool:
    return _kept_for_dev(agent, *sorted((action[0], action[3])))


def _kept_for_dev(*key: str) -> bool:
    return zlib.crc32(" | ".join(key).encode()) % DEV_SHARE == 0


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


_MAKERS: dict[str, Callable[[Random, bool], Row]] = {
    "toy_inference": _inference,
    "toy_follows": _follows,
    "toy_similarity": _similarity,
    "toy_paraphrase": _paraphrase,
    "toy_review": _review,
    "toy_cause": _cause,
    "toy_sense": _sense,
    "toy_order": _order,
}

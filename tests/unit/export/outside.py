"""What a user without this package does with exported folders: transformers' pipelines alone.

Run by test_huggingface.py as `python -I -S`: nothing but folders of packages can be imported.
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> dict:
    try:
        import ds_moe_mtl  # noqa: F401
    except ImportError:
        pass
    else:
        raise SystemExit("the package is there")
    from transformers import pipeline

    rows = json.loads((folder / "rows.json").read_text())
    found = {}
    classify = pipeline(
        "text-classification", model=str(folder / "all"), trust_remote_code=True, device="cpu"
    )

    def answers(task: str, **more) -> list:
        classify.model.set_task(task)
        inputs = [
            {"text": row[0], "text_pair": row[1]} if len(row) == 2 else row[0] for row in rows[task]
        ]
        return classify(inputs, truncation=True, batch_size=4, **more)

    for task in ("colour", "same"):
        found[task] = [answer["label"] for answer in answers(task)]
    found["amount"] = [answer["score"] for answer in answers("amount")]
    labels = classify.model.set_task("about").config.id2label.values()
    found["about"] = []
    for answer in answers("about", top_k=None):
        scores = {part["label"]: part["score"] for part in answer}
        found["about"].append({label: scores[label] for label in labels})
    tag = pipeline(
        "token-classification", model=str(folder / "all"), trust_remote_code=True, device="cpu"
    )
    tag.model.set_task("marks")
    found["marks"] = []
    for row in rows["marks"]:
        pieces = tag(row[0], ignore_labels=[])
        found["marks"].append([piece["entity"] for piece in pieces])
    dense = pipeline("text-classification", model=str(folder / "colour"), device="cpu")
    inputs = [row[0] for row in rows["colour"]]
    answered = dense(inputs, truncation=True)
    found["dense"] = [(answer["label"], answer["score"]) for answer in answered]
    return found


if __name__ == "__main__":
    sys.path += sys.argv[1].split(":")
    print(json.dumps(main(Path(sys.argv[2]))))

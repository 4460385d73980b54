"""The paper's table beside ours: differences, gains, marks, notes."""

from ds_moe_mtl.studies.tables.compare import compare, gains, notes, render, standard_errors
from ds_moe_mtl.studies.tables.schema import load_budgets, load_table

NOTES = ["mnli: trained on 5 of 392,702 published examples"]
SEEN = "minilm has seen, or may have seen, data of: "


def score(value, notes=(), seeds=1, examples=400):
    return {
        "max": value,
        "mean": value - 1,
        "std": 1.0 if seeds > 1 else None,
        "seeds": seeds,
        "point": [],
        "metric": "accuracy",
        "examples": examples,
        "device": "a GPU",
        "steps": 5,
        "notes": list(notes),
        "gate": "own",
        "donor_losses": None,
    }


def full_scores():
    table = load_table("table1")
    scores = {(row.name, c.name): score(60.0) for row in table.rows for c in table.columns}
    scores["MT-TaG", "RTE"] = score(70.0, seeds=3)
    scores["MT-TaG", "MNLI"] = score(60.0, [*NOTES, SEEN + "mnli"])
    scores["MT-Dense", "QQP"] = score(60.0, [SEEN + "qqp"])
    return table, scores


def test_ours_stands_beside_the_papers_with_the_difference():
    table, scores = full_scores()
    tag = compare(table, scores)[-1]
    assert tag["paper"]["RTE"] == 81.1 and tag["ours"]["RTE"] == 70.0
    assert round(tag["difference"]["RTE"], 6) == -11.1
    assert tag["ours"]["small"] == 62.5 and tag["ours"]["all"] == 61.25


def test_what_is_not_done_is_left_out_and_so_is_its_average():
    table, scores = full_scores()
    del scores["MT-TaG", "RTE"]
    tag = compare(table, scores)[-1]
    assert tag["ours"]["RTE"] is tag["difference"]["RTE"] is tag["ours"]["small"] is None
    assert "| - |" in render(table, load_budgets()["cpu"], None, scores)


def test_gains_are_over_the_first_row_or_the_one_that_is_named():
    table, scores = full_scores()
    found = {gain["name"]: gain for gain in gains(table, compare(table, scores))}
    assert found["MT-TaG"]["over"] == "Single-Task" and found["MT-TaG"]["ours"]["small"] == 2.5
    assert round(found["MT-TaG"]["paper"]["small"], 6) == 3.4
    table3 = load_table("table3")
    pairs = [(gain["name"], gain["over"]) for gain in gains(table3, compare(table3, {}))]
    assert pairs == [(f"{m}, GLUE", f"{m}, C-GLUE") for m in ("MT-Dense", "MT-Switch", "MT-TaG")]


def test_contaminated_and_partial_columns_are_marked_and_noted():
    table, scores = full_scores()
    text = render(table, load_budgets()["cpu"], "minilm", scores)
    assert "| RTE |" in text and "MNLI*+ |" in text and "QQP* |" in text
    assert f"- Data: {NOTES[0]}." in text and f"- Data: {SEEN}qqp, mnli." in text
    assert "minilm stands in" in text and "In the paper: The MT-TaG rows of MiniLM" in text
    assert "MT-TaG, RTE: 69.00 +- 1.00 (3 seeds)" in text and "- Run on: a GPU." in text


def test_a_donor_that_was_picked_is_told_with_its_losses():
    table = load_table("table6")
    picked = {**score(90.0), "gate": "sst2", "donor_losses": {"sst2": 0.5, "random": 0.75}}
    found = notes(table, load_budgets()["cpu"], None, {("auto", "IMDB 10%"): picked})
    line = "auto, IMDB 10%: took the gate sst2 by held-out loss (sst2 0.500, random 0.750)."
    assert line in found


def test_the_standard_error_is_the_binomials():
    table, scores = full_scores()
    for row in table.rows:
        scores[row.name, "RTE"] = score(50.0, examples=100)
    assert standard_errors(table, scores)["RTE"] == 5.0

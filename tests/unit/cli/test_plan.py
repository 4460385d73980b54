"""ds-moe-mtl plan on a tiny run: counts, table, files it writes, and its mistakes."""

import json
import signal
import subprocess

import pytest

from ds_moe_mtl.benchmark.encoder_shape import known_config, shape_of
from ds_moe_mtl.cli import main
from ds_moe_mtl.config import dump_config, load_config
from ds_moe_mtl.config.deepspeed import resolve_deepspeed
from ds_moe_mtl.planner.flops import count_parameters
from tests.support.launch import start
from tests.support.tiny import tiny_config, write_tiny

BUCKET_BYTES = 4 * 50_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    (folder / "run.yaml").write_text(dump_config(tiny_config(folder)))
    return folder


def planned(tiny, capsys, *arguments: str) -> dict:
    """Return the plan as JSON."""
    assert main(["plan", str(tiny / "run.yaml"), "--calibrate", "0", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_stage_and_ep_size_that_runs_has_a_row(tiny, capsys):
    plan = planned(tiny, capsys, "--gpus", "4", "--gpu-memory", "24")
    found = [(row["zero_stage"], row["ep_size"]) for row in plan["memory"]]
    # Stage 0 clips inexactly with ep_size above 1: train.py refuses it.
    assert found == [(0, 1), (1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]
    assert all(row["fits"] for row in plan["memory"])
    assert [row["chosen"] for row in plan["memory"]].index(True) == 1
    assert [row["advised"] for row in plan["memory"]].index(True) == 1
    sent = {row["ep_size"]: row["sent_bytes"] for row in plan["memory"]}
    assert sent[1] == 0 < sent[2] < sent[4]


def test_a_dense_plan_has_no_experts_and_says_so(tiny, capsys):
    plan = planned(tiny, capsys, "model.kind=mt_dense")
    assert plan["parameters"]["experts"] == 0 and plan["flops_a_token"]["gates"] == 0
    assert "no experts" in plan["advice"]


def test_levers_are_counted(tiny, capsys):
    merged = planned(tiny, capsys, "moe.combine=merged", "--gpus", "4")
    assert merged["flops_a_token"]["merge"] > 0 == merged["flops_a_token"]["gates"]
    assert {row["ep_size"] for row in merged["memory"]} == {1}
    assert "moe.combine = merged" in merged["advice"]
    half = planned(tiny, capsys, "moe.layers=last_half", "--gpus", "4")
    whole = planned(tiny, capsys, "--gpus", "4")
    assert 2 * half["parameters"]["experts"] == whole["parameters"]["experts"]
    assert [2 * row["sent_bytes"] for row in half["memory"]] == [
        row["sent_bytes"] for row in whole["memory"]
    ]


def test_a_card_gives_its_limits_and_the_command_line_has_the_last_word(tiny, capsys):
    known = planned(tiny, capsys, "--card", "a100-sxm-40", "--gpus", "2")["machine"]
    assert known["flops"] == 19.5e12 and known["share"] is None  # the tiny run is in fp32
    assert known["memory"] == pytest.approx(0.9 * 1555e9)
    assert known["nvlink"] == pytest.approx(200e9)
    given = planned(tiny, capsys, "--card", "a100-sxm-40", "--tflops", "100", "--nvlink", "150")
    assert given["machine"]["flops"] == 100e12 and given["machine"]["share"] == 1
    assert given["machine"]["nvlink"] == 150e9
    assert all(row["fits"] for row in given["memory"])  # in the card's 40 GB


def test_the_network_is_told_apart_and_which_exchange_is_cheaper_over_it(tiny, capsys):
    hosts = ["--gpus", "4", "--gpus-per-node", "2", "--network", "0.0125", "--nics", "1"]

    def rows(*more: str) -> dict[int, dict]:
        found = planned(tiny, capsys, *hosts, *more)["memory"]
        return {row["ep_size"]: row for row in found if row["zero_stage"] == 1}

    inside, over = rows()[2], rows()[4]
    assert inside["exchange"] is None  # experts of two ranks stay on their host
    assert inside["cost_flat"]["all_to_all_network"] == 0 < inside["cost_flat"]["all_to_all"]
    assert inside["cost_flat"]["reduction_network"] == inside["cost_flat"]["reduction"]
    assert 0 < over["cost_flat"]["all_to_all_network"] < over["cost_flat"]["all_to_all"]  # the wait
    assert over["exchange"]["cheaper"] == "hierarchical"  # two messages for three, of few bytes
    assert over["cost_hierarchical"] < over["cost_flat"]["total"]
    never = rows("--latency", "0")[4]["exchange"]
    assert (never["cheaper"], never["hierarchical_below"]) == ("flat", 0)
    assert rows("--nics", "2")[4]["cost_flat"]["network"] < over["cost_flat"]["network"]
    assert main(["plan", str(tiny / "run.yaml"), "--calibrate", "0", *hosts]) == 0
    said = capsys.readouterr().out
    assert "0.0125 GB/s a network card, 1 a node" in said
    assert "all-to-all, ep_size 4: hierarchical is cheaper; a rank brings " in said


def test_a_tiny_model_is_sent_to_one_gpu(tiny, capsys):
    """Two messages of 10 us to a ring, and more, are longer than all that it computes."""
    plan = planned(tiny, capsys, "--gpus", "4", "--gpu-memory", "24")
    cost = next(row["cost_flat"] for row in plan["memory"] if row["advised"])
    assert plan["advice"].startswith("Use one GPU: ")
    assert f"reduction {1e3 * cost['reduction']:.2f}" in plan["advice"]
    assert cost["compute"] < cost["reduction"]
    alone = planned(tiny, capsys, "--gpus", "1", "--gpu-memory", "24")
    assert "Use one GPU" not in alone["advice"]
    seconds = alone["memory"][1]["cost_flat"]["total"]
    assert f"{1e3 * seconds:.2f} ms on one" in plan["advice"]
    slow = ["--tflops", "1e-6", "--latency", "0", "--gpus", "4", "--gpu-memory", "24"]
    assert "Use one GPU" not in planned(tiny, capsys, *slow)["advice"]


def test_the_ep_size_that_is_advised_is_written(tiny, capsys, tmp_path):
    """Without latency and with a slow link, gradients of experts are what a step takes."""
    job = tmp_path / "job"
    slow = ["--gpus", "4", "--nvlink", "0.001", "--latency", "0", "train.accumulation=1"]
    more = ["train.batch_size=4", "moe.num_experts=64", "--write", str(job)]
    plan = planned(tiny, capsys, *slow, *more)
    best = next(row for row in plan["memory"] if row["advised"])
    assert best["ep_size"] > 1 and not best["chosen"]
    assert f"helps by the cost model: ep_size {best['ep_size']} takes" in plan["advice"]
    assert f"moe.ep_size={best['ep_size']} " in (job / "run.sbatch").read_text()


def test_what_does_not_fit_is_told_and_not_written(tiny, capsys, tmp_path):
    arguments = ["--gpus", "1", "--gpu-memory", "0.0001", "--calibrate", "0"]
    status = main(["plan", str(tiny / "run.yaml"), *arguments, "--write", str(tmp_path / "job")])
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(errors) == 1 and "nothing fits" in errors[0]
    assert not (tmp_path / "job").exists()


def test_what_cannot_help_is_not_advised(tiny, capsys):
    short = ["--gpus", "4", "--gpu-memory", "0.0001"]
    nothing_saved = planned(tiny, capsys, *short)
    assert nothing_saved["ways_out"] == (
        "take more GPUs, or offload_optimizer in the DeepSpeed JSON"
    )
    assert nothing_saved["ways_out"] in nothing_saved["advice"]
    least = min(nothing_saved["memory"], key=lambda row: row["peak"])
    room = (least["peak"] - least["activations"] / 2) / 0.9 / 2**30
    kept = planned(tiny, capsys, "--gpus", "4", "--gpu-memory", str(room))
    assert ("train.accumulation" in kept["ways_out"]) == (least["activations"] > 0)


@pytest.mark.parametrize("shape", ["modernbert_base", "eurobert_210m", "xlm_roberta_xl"])
def test_an_encoder_of_another_family_is_planned_by_its_shape(tiny, capsys, shape):
    plan = planned(tiny, capsys, "--shape", shape, "train.precision=bf16", "--card", "h100-sxm")
    encoder = shape_of(known_config(shape))
    assert plan["model"]["encoder"] == shape and plan["model"]["shape"] == encoder._asdict()
    heads = plan["parameters"]["heads"]
    gates = plan["parameters"]["gates"] // (encoder.layers * 4 * encoder.hidden)
    assert plan["parameters"]["total"] == count_parameters(encoder, 4, gates).total + heads


def test_written_files_describe_a_job_that_loads_from_any_folder(
    tiny, capsys, tmp_path, monkeypatch
):
    job = tmp_path / "job"
    monkeypatch.chdir(tiny)
    words = ["run.yaml", "train.lr=2e-4", "run.dir=here", "model.encoder=encoder"]
    machine = ["--gpus", "6", "--gpus-per-node", "4", "--calibrate", "0"]
    assert main(["plan", *words, *machine, "--write", str(job)]) == 0
    monkeypatch.chdir("/")
    script = (job / "run.sbatch").read_text()
    assert subprocess.run(["bash", "-n", job / "run.sbatch"]).returncode == 0
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=3", "#SBATCH --gpus-per-node=3"):
        assert script.count(line + "\n") == 1
    command = next(line for line in script.splitlines() if "$TRAIN /" in line)
    arguments = command.split("$TRAIN ")[1].split()
    assert {"train.lr=2e-4", f"run.dir={tiny}/here", f"model.encoder={tiny}/encoder"} <= {
        *arguments
    }
    config = load_config(arguments[0], arguments[1:])
    assert resolve_deepspeed(config, 6)["zero_optimization"]["stage"] == 1
    (job / "run.sbatch").write_text("#SBATCH --partition=mine")
    (job / "deepspeed.json").unlink()
    capsys.readouterr()
    assert main(["plan", str(tiny / "run.yaml"), *machine, "--write", str(job)]) == 2
    said = capsys.readouterr()
    assert "run.sbatch exists; allowed: another folder" in said.err and not said.out
    assert (job / "run.sbatch").read_text() == "#SBATCH --partition=mine"
    assert not (job / "deepspeed.json").exists()


def test_an_exchange_that_the_nodes_refuse_is_noted_and_not_written(tiny, capsys, tmp_path):
    asked = ["moe.num_experts=4", "moe.ep_size=4", "moe.exchange=hierarchical"]
    machine = ["--gpus", "4", "--gpus-per-node", "4", "--gpu-memory", "80", "--calibrate", "0"]
    job = tmp_path / "job"
    assert main(["plan", str(tiny / "run.yaml"), *asked, *machine, "--write", str(job)]) == 0
    said = capsys.readouterr().out
    assert "moe.exchange = hierarchical and moe.ep_size = 4 ends at its start on 4 GPUs" in said
    assert "note: the job has moe.exchange=flat" in said
    script = (job / "run.sbatch").read_text()
    assert "moe.exchange=flat" in script and "hierarchical" not in script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0"], "--gpus = 0"),
        (["--nvlink", "-3"], "--nvlink = -3"),
        (["--nics", "0"], "--nics = 0"),
        (["--gpus", "10"], "train.batch_size = 6 is smaller than 10 ranks"),
        (["--gpus", "5", "--gpus-per-node", "4"], "not as many on each of 2 nodes; allowed: "),
        (["--network", "nan"], "--network = nan; allowed: a number above 0"),
        (["--latency", "inf"], "--latency and --host-wait: allowed: a number from 0 on"),
        (["--gpus", "3", "moe.ep_size=2"], "moe.ep_size = 2 does not divide"),
        (["--shape", "minilm", "--write", "job"], "--write with --shape"),
        (["model.encoder=no/such"], "model.encoder"),
        (["--gpus", "many"], "invalid int value"),
        (["--shape", "modernbert"], "invalid choice: 'modernbert'"),
        (["--calibrate", "0", "--write", "/proc/nowhere"], "/proc/nowhere: "),
        (["moe.layers=[7]"], "moe.layers: 7 with an encoder of 2 layers"),
        (["--card", "t4", "train.precision=bf16"], "--card t4: no peak of products in bf16"),
        (["--host-wait", "-1"], "--host-wait: allowed: a number from 0 on"),
        (["model.kind=task_moe"], "model.kind = task_moe: the planner does not count"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny, capsys, arguments, words):
    try:
        status = main(["plan", str(tiny / "run.yaml"), "--calibrate", "0", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(errors) == 1 and words in errors[0], errors


def test_a_calibration_tells_layers_with_experts_from_those_without(tiny, capsys):
    arguments = ["--calibrate", "0.1", "--measure", "--json", "moe.layers=last_half"]
    assert main(["plan", str(tiny / "run.yaml"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)["calibrated"]
    parts = ("forward", "backward", "optimizer")
    for row in (found["predicted"], found["measured"]):
        assert row["total"] == pytest.approx(sum(row[part] for part in parts)) and row["rounds"]


def test_a_calibration_predicts_what_the_whole_run_then_takes(tiny, capsys):
    arguments = ["--calibrate", "0.5", "--measure", "--json"]
    assert main(["plan", str(tiny / "run.yaml"), *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    predicted, measured = (plan["calibrated"][name] for name in ("predicted", "measured"))
    assert predicted["total"] == pytest.approx(
        predicted["forward"] + predicted["backward"] + predicted["optimizer"]
    )
    chosen = next(row for row in plan["memory"] if row["chosen"])
    states = chosen["weights"] + chosen["optimizer"]
    # DeepSpeed's reduction bucket (5e7 float32) may outlive the step that is looked at, or not.
    buckets = round((measured["held"] - states) / BUCKET_BYTES)
    assert buckets in (0, 1)
    assert measured["held"] - buckets * BUCKET_BYTES == pytest.approx(states, rel=0.05)
    assert measured["held"] < measured["peak"] < measured["resident"]


def test_a_rank_that_is_killed_ends_the_calibration_with_one_line(tiny):
    plan = ["-m", "ds_moe_mtl", "plan", tiny / "run.yaml", "--calibrate", "600", "--gpus", "2"]
    with start(plan, 1, "python") as running:
        running.wait_until(lambda: len(running.ranks()) == 2)
        running.ranks()[1].kill()
        ended = running.wait(60)
    assert ended.returncode == 2 and not ended.timed_out, ended.text
    errors = ended.stderr.strip().splitlines()
    assert len(errors) == 1 and "rank 1 was ended by SIGKILL" in errors[0], ended.text


def test_sigterm_leaves_no_worker_behind(tiny):
    plan = ["-m", "ds_moe_mtl", "plan", tiny / "run.yaml", "--calibrate", "600"]
    with start(plan, 1, "python") as running:
        running.wait_until(lambda: len(running.processes()) > 1)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 128 + signal.SIGTERM
        assert running.processes() == []

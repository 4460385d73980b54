"""The report for a card: limits, what a cut leaves, and every part's rehearsal without a card."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ds_moe_mtl.benchmark.gpu.kinds import Work, busy, by_kind, kind_of
from ds_moe_mtl.benchmark.gpu.parts import PARTS
from ds_moe_mtl.benchmark.gpu.report import Request, run_parts
from ds_moe_mtl.benchmark.gpu.table import NO_GPU
from ds_moe_mtl.benchmark.gpu.traced_step import device_work
from tests.support.gpu_parts import part
from tests.support.launch import launch, start
from tests.support.paths import ROOT


def has_ended(number: int) -> bool:
    """Return whether a process is gone, but for what its parent has not asked yet."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_part_is_cut_at_its_limit_with_all_it_started_and_the_rest_goes_on(tmp_path, capsys):
    parts = [part("end"), part("hang", 6.0), part("lack"), part("refuse"), part("fail"), part("e")]
    report = run_parts(Request(tmp_path, 300.0, gpu=False), parts, print)
    rows = {row["name"]: row for row in report["parts"]}
    status = [row["status"] for row in report["parts"]]
    assert status == ["done", "cut", "cannot run", "refused", "failed", "done"]
    assert rows["end"]["found"] == {"value": 7} and "printed" not in rows["end"]
    child = rows["hang"]["found"]["child"]
    assert has_ended(child)
    assert "a_package_that_is_not_there" in rows["lack"]["reason"]
    assert rows["refuse"]["reason"].endswith("train.steps = -1; allowed: 1 or more")
    assert rows["fail"]["found"]["tables"] and "RuntimeError: two" in rows["fail"]["reason"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.md").read_text()
    assert NO_GPU in page and NO_GPU in capsys.readouterr().out
    assert "| a/b |" in page and "| 1.5 |" in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_no_part_is_begun_when_the_budget_is_spent(tmp_path):
    report = run_parts(Request(tmp_path, 4.0, gpu=True), [part("end")], lambda line: None)
    (row,) = report["parts"]
    assert row["status"] == "not begun" and report["note"] is None


def test_a_stopped_report_leaves_what_is_done_and_no_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from ds_moe_mtl.benchmark.gpu.report import Request, run_parts\n"
        "from tests.support.gpu_parts import part\n"
        "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))\n"
        f"request = Request(Path({str(tmp_path / 'out')!r}), 300.0, gpu=False)\n"
        "run_parts(request, [part('end'), part('hang')], print)\n"
    )
    running = tmp_path / "out" / "hang.json"
    with start([program], 1, "python") as run:
        run.wait_until(lambda: running.exists() and "child" in running.read_text())
        child = json.loads(running.read_text())["found"]["child"]
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) == 128 + signal.SIGTERM
        assert has_ended(child)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["status"] for row in report["parts"]] == ["done"]


def test_every_part_has_a_limit_and_the_command_knows_them():
    assert len({p.name for p in PARTS}) == len(PARTS) and all(p.seconds > 0 for p in PARTS)
    command = [sys.executable, "-m", "ds_moe_mtl.benchmark.gpu", "--only", "everything"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "everything" in run.stderr and "attention" in run.stderr
    told = subprocess.run(
        ["make", "-n", "gpu-report", "ARGS=--budget 60"], cwd=ROOT, capture_output=True, text=True
    )
    assert "-m ds_moe_mtl.benchmark.gpu --budget 60" in told.stdout, told.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNN", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("up_grad_kernel", "products"),
        ("gate_weight_grad_kernel", "routing"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<...>", "LayerNorm"),
        ("void at::native::(anonymous namespace)::fused_dropout_kernel_vec<...>", "dropout"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
            "GELU and elementwise",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copies and fills",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<...>", "optimizer"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "collectives"),
        ("something_new", "other"),
    ],
)
def test_kernels_are_told_by_their_names(name, kind):
    assert kind_of(Work(name, 0, 1)) == kind
    assert kind_of(Work(name, 0, 1, "optimizer")) == "optimizer"


def test_idle_time_is_what_no_kernel_covers():
    works = [Work("gemm", 0, 10), Work("gelu", 5, 10), Work("x", 100, 5), Work("gemm", 101, 2)]
    assert busy(works) == 20
    rows = by_kind(works, step_ms=0.2)
    assert rows["products"] == (0.012, 2) and rows["idle"].ms == pytest.approx(0.18)
    assert list(rows)[0] == "products" and list(rows)[-1] == "idle"


def event(name, start, length, number, cuda=False):
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: length,
        correlation_id=lambda: number,
        device_type=lambda: kind,
    )


def test_a_kernel_is_the_optimizers_where_its_launch_was():
    works = device_work(
        [
            event("ds_moe_mtl::step", 1000, 500, 1),
            event("ds_moe_mtl::step", 5000, 500, 1, cuda=True),
            event("cudaLaunchKernel", 900, 10, 2),
            event("cudaLaunchKernel", 1100, 10, 3),
            event("first", 4000, 2000, 2, cuda=True),
            event("second", 7000, 3000, 3, cuda=True),
        ]
    )
    assert [(work.name, work.length, work.part) for work in works] == [
        ("first", 2.0, ""),
        ("second", 3.0, "optimizer"),
    ]


def test_every_part_that_steps_is_rehearsed_without_a_card(tmp_path):
    names, answer = ["graphs", "contests", "traced_step", "update"], tmp_path / "answer.json"
    environ = {"TRITON_INTERPRET": "1"}
    program = Path(ROOT, "tests", "support", "gpu_parts.py")
    run = launch([program, answer, *names], 1, "python", env=environ, time_limit=600)
    assert run.returncode == 0 and answer.exists(), run.text
    found = json.loads(answer.read_text())
    assert all(table["rows"] for name in names for table in found[name]["tables"])
    assert [row["equal"] for row in found["graphs"]["equal"]] == [True, True]
    assert found["graphs"]["buckets"][0]["replayed"] > 0
    contest = found["contests"]["contests"]["default"]["step"]
    assert set(contest) == {"mt_dense", "mt_tag"}
    assert "needs a GPU" in str(found["contests"]["refused"]["graphs"]) or "unknown key" in str(
        found["contests"]["refused"]["graphs"]
    )
    assert found["traced_step"]["kinds"]["mt_tag"]["products"]["ms"] > 0
    assert found["update"]["updates"][0]["weights"] > 1_000_000

"""Every Triton kernel is compiled for sm_90, without a device, at the shapes it is meant for."""

import json
import os
import subprocess
import sys

import pytest

SHARED_MEMORY_OF_A_BLOCK = 227 * 1024  # H100 and H200
PRODUCTS = {"up_kernel", "down_kernel", "down_grad_kernel", "up_grad_kernel", "weight_grad_kernel"}
ENCODER = {
    "attend_kernel",
    "attend_grad_kernel",
    "residual_norm_kernel",
    "residual_norm_grad_kernel",
    "sum_parts_kernel",
}
HEADINGS = ("kernel", "block", "registers", "spilled_bytes", "shared_bytes", "wgmma")


# BERT's FFN and ModernBERT's.
FORMS = {
    "gelu": (),
    "geglu": ("--activation", "geglu", "--inner", "1152", "--no-biases"),
}


@pytest.fixture(scope="module", params=FORMS)
def table(root, request):
    """A row for every kernel of a base-size layer's step: 32,768 tokens, 4 experts, bfloat16."""
    return report(root, "--tokens", "32768", "--hidden", "768", *FORMS[request.param])


@pytest.fixture(scope="module")
def update(root):
    """A row for every kernel of an update: of a group that 16 bytes are moved of, and another."""
    return report(root, "--part", "update")


def report(root, *arguments):
    """Return the rows of the compile report."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = root / "kernels/benchmarks/compile_report.py"
    command = [sys.executable, str(script), "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    print("\n" + "  ".join(HEADINGS))
    for row in rows:
        print("  ".join(str(row[heading]) for heading in HEADINGS))
    return rows


def test_a_step_compiles_all_of_its_kernels(table):
    names = {row["kernel"] for row in table}
    routing = {"choose_kernel", "scan_kernel", "order_kernel", "logits_grad_kernel"}
    assert names == PRODUCTS | routing | {"gate_weight_grad_kernel", "sort_rows_kernel"}


def test_no_kernel_spills_registers_or_exceeds_shared_memory(table):
    for row in table:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_MEMORY_OF_A_BLOCK, row


def test_products_use_hoppers_matrix_units_and_wide_asynchronous_copies(table):
    for row in table:
        if row["kernel"] in PRODUCTS:
            assert row["wgmma"] > 0 and row["copies_16_bytes"] > 0, row


def test_tiles_that_share_a_multiprocessor_leave_each_other_room(table):
    """Products with activations are to run twice a multiprocessor: 64 K registers, 228 KiB."""
    found = [row for row in table if row["kernel"] in ("up_kernel", "down_grad_kernel")]
    assert len(found) == 2
    for row in found:
        assert 2 * row["registers"] * row["warps"] * 32 <= 65536, row
        assert 2 * row["shared_bytes"] <= 228 * 1024, row


@pytest.mark.parametrize(("hidden", "head"), [(768, 64), (1024, 128)])
def test_an_encoders_kernels_compile_without_spills_for_every_size_of_a_head(root, hidden, head):
    rows = report(root, "--part", "encoder", "--hidden", str(hidden), "--head", str(head))
    assert {row["kernel"] for row in rows} == ENCODER
    blocks = {row["block"] for row in rows if row["kernel"] == "attend_grad_kernel"}
    assert blocks == {f"{block}x{head}" for block in (16, 32, 64, 128)}
    test_no_kernel_spills_registers_or_exceeds_shared_memory(rows)
    for row in rows:  # a block of 64 rows is what Hopper's matrix units take
        if row["block"].startswith(("64x", "128x")) and "attend" in row["kernel"]:
            assert row["wgmma"] > 0, row


def test_the_updates_kernels_spill_nothing_and_move_16_bytes_at_once(update):
    names = ["norm_kernel", "decide_kernel", "update_kernel", "update_kernel"]
    assert [row["kernel"] for row in update] == names
    assert all(row["spilled_bytes"] == 0 for row in update)
    loads = [row["loads_16_bytes"] for row in update]
    assert loads[0] >= 1 and loads[2] >= 7 and loads[3] == 0  # the last one's sizes are odd
    # Of 2,048 threads that a multiprocessor runs at most, half are enough to wait for memory.
    assert all(1024 * row["registers"] <= 65536 for row in update[::2])

"""The all-to-all formula where its answer is known by hand."""

import pytest

from ds_moe_mtl.planner.traffic import all_to_all_bytes, expected_remote_rows, remote_rows


def test_rows_for_a_ranks_own_experts_do_not_leave_it():
    assert remote_rows([5, 1, 0, 7], place=0, num_ranks=2) == 7
    assert remote_rows([5, 1, 0, 7], place=1, num_ranks=2) == 6
    assert remote_rows([5, 1, 0, 7], place=0, num_ranks=1) == 0


def test_one_rank_sends_nothing():
    assert all_to_all_bytes([0, 0], [0, 0], 384, 2, num_experts=4, num_ranks=1) == 0


def test_uniform_routes_send_four_times_the_remote_share_and_the_counts():
    tokens, hidden, ranks, layers = 1024, 768, 4, 12
    rows = [expected_remote_rows(tokens, ranks)] * layers
    assert rows[0] == 768
    found = all_to_all_bytes(rows, rows, hidden, 2, num_experts=8, num_ranks=ranks)
    # 12 layers x (4 transfers x 768 rows x 768 wide x 2 bytes + 3 ranks x 2 experts x 4 bytes)
    assert found == pytest.approx(12 * (4 * 768 * 768 * 2 + 3 * 2 * 4))

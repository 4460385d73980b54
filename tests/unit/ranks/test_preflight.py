"""Ranks that would not do the same thing are found before the first step."""

import socket

import pytest

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.preflight import check_agreement, fingerprints, source_hash

AGREED = {"torch": "2.13.0", "configuration": "c0ffee", "data of rte": "11aa"}


def gathered(*others):
    """Return a gather of this rank and `others`, as (host, fingerprints), in that order."""
    return lambda mine: [mine, *others]


def test_equal_ranks_pass():
    check_agreement(AGREED, gathered(("b", dict(AGREED)), ("c", dict(AGREED))))


def test_node_that_differs_is_named_with_both_values():
    other = AGREED | {"torch": "2.12.1"}
    with pytest.raises(UserError) as refusal:
        check_agreement(AGREED, gathered(("b", dict(AGREED)), ("node9", other)))
    assert str(refusal.value) == (
        "torch differs between the ranks: rank 2 on node9 has 2.12.1; 2 ranks (rank 0 on"
        f" {socket.gethostname()} first) have 2.13.0"
    )


def test_odd_rank_0_is_named_and_not_the_many():
    with pytest.raises(UserError) as refusal:
        check_agreement(
            AGREED | {"data of rte": "old"}, gathered(("b", dict(AGREED)), ("c", dict(AGREED)))
        )
    assert f"rank 0 on {socket.gethostname()} has old; 2 ranks (rank 1 on b first)" in str(
        refusal.value
    )


def test_fingerprint_that_one_rank_lacks_is_a_difference():
    fewer = {name: value for name, value in AGREED.items() if name != "data of rte"}
    with pytest.raises(UserError, match="data of rte.*rank 2 on c has missing; 2 ranks"):
        check_agreement(AGREED, gathered(("b", dict(AGREED)), ("c", fewer)))
    with pytest.raises(UserError, match="data of rte.*rank 1 on b has 11aa; rank 0.*missing"):
        check_agreement(fewer, gathered(("b", dict(AGREED))))


def test_every_rank_gets_the_same_message():
    ranks = [("a", AGREED), ("b", AGREED | {"torch": "1"}), ("c", AGREED | {"torch": "2"})]
    messages = set()
    for _, local in ranks:
        with pytest.raises(UserError) as refusal:
            check_agreement(local, lambda mine: ranks)
        messages.add(str(refusal.value))
    assert len(messages) == 1


def test_source_hash_follows_one_changed_byte(tmp_path, monkeypatch):
    package = tmp_path / "hashed_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    module = package / "inner" / "part.py"
    module.write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_hash(["hashed_package"])
    assert source_hash(["hashed_package"]) == before
    module.write_text("SCALE = 2\n")
    changed = source_hash(["hashed_package"])
    assert changed != before
    module.rename(package / "part.py")
    assert source_hash(["hashed_package"]) not in {before, changed}


def test_fingerprints_cover_code_versions_configuration_and_data():
    names = set(fingerprints("c0ffee", {"rte": "11aa"}))
    assert names >= {"source code", "torch", "deepspeed", "configuration", "data of rte"}

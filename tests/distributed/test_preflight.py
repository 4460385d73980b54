"""The pre-flight check over a real process group."""

from pathlib import Path

from torch import distributed as dist

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks import preflight
from ds_moe_mtl.ranks.preflight import check_agreement, fingerprints
from tests.support.launch import run_ranks


def refusals(*configurations_of_rank_1: str) -> list[str]:
    """Return what the check said on this rank for each configuration, "" where it passed."""
    return [refusal(configuration) for configuration in configurations_of_rank_1]


def gather(mine: object) -> list:
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def refusal(configuration_of_rank_1: str) -> str:
    configuration = configuration_of_rank_1 if dist.get_rank() == 1 else "c0ffee"
    try:
        check_agreement(fingerprints(configuration, {"rte": "11aa"}), gather)
    except UserError as error:
        return str(error)
    return ""


def unshared(shared: str) -> list[str]:
    """Return what is said of one folder for all ranks, and of one for each; "" where it passes."""
    rank = dist.get_rank()
    own = Path(shared) / str(rank)
    own.mkdir()
    return [said_of(folder, rank) for folder in (Path(shared), own)]


def said_of(folder: Path, rank: int) -> str:
    preflight.SHARED_PATIENCE = 0.3
    try:
        preflight.check_shared(folder, rank, gather)
    except UserError as error:
        return str(error)
    return ""


def test_a_rank_that_sees_another_run_folder_is_named_on_every_rank(tmp_path):
    said = run_ranks(unshared, str(tmp_path))
    passed, refused = zip(*said, strict=True)
    assert passed == ("", "") and not list(tmp_path.glob(".seen*"))
    assert all("rank 1 on " in line and "does not see in " in line for line in refused)


def test_rank_with_another_configuration_is_named_on_every_rank():
    said = run_ranks(refusals, "c0ffee", "decaf")
    assert said[0] == said[1]
    passed, refused = said[0]
    assert passed == ""
    assert refused.startswith("configuration differs between the ranks: rank 1 on ")
    assert "has decaf; rank 0 on" in refused

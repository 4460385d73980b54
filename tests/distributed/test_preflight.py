"""The pre-flight check over a real process group."""

from torch import distributed as dist

from ds_moe_mtl.config import UserError
from ds_moe_mtl.ranks.preflight import check_agreement, fingerprints
from tests.support.launch import run_ranks


def refusals(*configurations_of_rank_1: str) -> list[str]:
    """Return what the check said on this rank for each configuration, "" where it passed."""
    return [refusal(configuration) for configuration in configurations_of_rank_1]


def refusal(configuration_of_rank_1: str) -> str:

    def gather(mine):
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        return everyone

    configuration = configuration_of_rank_1 if dist.get_rank() == 1 else "c0ffee"
    try:
        check_agreement(fingerprints(configuration, {"rte": "11aa"}), gather)
    except UserError as error:
        return str(error)
    return ""


def test_rank_with_another_configuration_is_named_on_every_rank():
    said = run_ranks(refusals, "c0ffee", "decaf")
    assert said[0] == said[1]
    passed, refused = said[0]
    assert passed == ""
    assert refused.startswith("configuration differs between the ranks: rank 1 on ")
    assert "has decaf; rank 0 on" in refused

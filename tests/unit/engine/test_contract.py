"""What this package replaces or relies on in DeepSpeed is there, or a run says what is not."""

import os
import re

import deepspeed
import pytest
from deepspeed.moe.sharded_moe import MOELayer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from ds_moe_mtl import engine
from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.contract import CONTRACT, check_contract
from ds_moe_mtl.engine.engine import start_engine, start_process_group
from ds_moe_mtl.ranks.rendezvous import rendezvous


def test_the_installed_deepspeed_has_every_name():
    check_contract()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (DeepSpeedZeroOptimizer, "get_grad_norm_direct"),
        (DeepSpeedZeroOptimizer, "reduce_ipg_grads"),
        (MOELayer, "_set_ep_group"),
        (deepspeed.runtime.utils, "all_gather_dp_groups"),
    ],
)
def test_a_name_that_is_gone_is_named_in_one_line(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    for start in (check_contract, lambda: start_engine(None, None, {})):
        with pytest.raises(UserError, match=rf"has no \S+\.{name}, ") as refused:
            start()
        assert "\n" not in str(refused.value) and "allowed: " in str(refused.value)


def test_an_attribute_that_no_method_assigns_any_more_is_named(monkeypatch):
    monkeypatch.delattr(DeepSpeedZeroOptimizer, "__init__")
    with pytest.raises(UserError, match=r"DeepSpeedZeroOptimizer\.\w+, "):
        check_contract()


@pytest.mark.parametrize("version", ["0.19.3", "0.20.0"])
def test_a_release_out_of_the_range_is_refused_before_ranks_meet(monkeypatch, version):
    monkeypatch.setattr(deepspeed, "__version__", version)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match=rf"deepspeed {version} .*>=0.19.4,<0.20"):
        start_process_group(rendezvous({}))


def test_the_table_lists_what_the_guard_looks_for():
    listed = {
        (owner, name)
        for owner, names in re.findall(r"^    ([\w.]+): ([\w, ]+)$", engine.__doc__, re.MULTILINE)
        for name in names.split(", ")
    }
    looked_for = {
        (home.rpartition(":")[2], name) for home, names in CONTRACT.items() for name in names
    }
    assert listed == looked_for

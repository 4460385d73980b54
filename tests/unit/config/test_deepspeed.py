"""DeepSpeed's JSON is filled from the run; what contradicts it is one line, never a guess."""

import json

import pytest

from ds_moe_mtl.config import UserError, load_config, resolve_deepspeed
from ds_moe_mtl.config.deepspeed import updates_in_one_pass

RUN = "run: {dir: runs/x}\ntasks: [rte]\ntrain: {steps: 10, batch_size: 32, accumulation: 2}\n"
AUTO = 'make them agree or write "auto"'


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """Resolve a JSON (a dict, or text) against the run above and its overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN + "deepspeed: ds.json\n")

    def resolve(native, *overrides, ranks=4, device="cpu"):
        text = native if isinstance(native, str) else json.dumps(native)
        (tmp_path / "ds.json").write_text(text)
        return resolve_deepspeed(load_config("run.yaml", overrides), ranks, device)

    return resolve


def test_absent_and_auto_values_come_from_the_run(resolve):
    auto = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 0},
        "scheduler": "auto",
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
    }
    filled = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": {"stage": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 0.0001,
                "betas": [0.9, 0.98],
                "eps": 1e-8,
                "weight_decay": 0.01,
                "torch_adam": True,
                "fused": True,
            },
        },
    }
    overrides = ["train.clip=0.5", "train.betas.1=0.98", "train.weight_decay=0.01"]
    assert resolve(auto, *overrides) == filled
    assert resolve({}, *overrides) == filled
    assert resolve(filled, *overrides) == filled


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("batch", [21, 32, 33])
def test_the_batch_satisfies_deepspeeds_own_arithmetic(resolve, ranks, accumulation, batch):
    overrides = [f"train.batch_size={batch}", f"train.accumulation={accumulation}"]
    native = resolve({}, *overrides, ranks=ranks)
    micro = native["train_micro_batch_size_per_gpu"]
    assert native["train_batch_size"] == micro * accumulation * ranks
    assert (micro - 1) * accumulation * ranks < batch <= native["train_batch_size"]


def test_deepspeed_itself_takes_what_was_resolved(resolve):
    from deepspeed.runtime.config import DeepSpeedConfig

    native = resolve({}, "train.precision=bf16", "deepspeed=ds_configs/deepspeed/zero2.json")
    native["train_batch_size"] //= 4  # it counts one rank where no process group is up
    taken = DeepSpeedConfig(native)
    assert taken.zero_optimization_stage == 2
    assert taken.bfloat16_config.enabled and not taken.float16_config.enabled


def test_what_is_deepspeeds_own_passes_through(resolve):
    native = {
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "fp16": {"enabled": "auto", "loss_scale_window": 100},
        "optimizer": {"type": "Adam", "params": {"torch_adam": False, "adam_w_mode": False}},
    }
    resolved = resolve(native)
    assert resolved["wall_clock_breakdown"] is True
    assert resolved["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert resolved["fp16"] == {"enabled": False, "loss_scale_window": 100}
    assert resolved["optimizer"]["type"] == "Adam"
    assert "fused" not in resolved["optimizer"]["params"]


def test_each_shipped_json_resolves_in_the_precisions_of_its_stage(resolve):
    for stage in (0, 1, 2):
        shipped = f"deepspeed=ds_configs/deepspeed/zero{stage}.json"
        for precision in ("fp32", "bf16", "fp16") if stage else ("fp32",):
            native = resolve({}, shipped, f"train.precision={precision}", device="cuda")
            assert native["zero_optimization"]["stage"] == stage
            assert native["bf16"]["enabled"] is (precision == "bf16")
            assert native["fp16"]["enabled"] is (precision == "fp16")


def test_adamax_is_torchs_own_and_told_to_zero(resolve):
    native = resolve({"optimizer": {"type": "adamax"}}, "train.lr=0.5")
    assert native["optimizer"]["type"] == "Adamax" and native["zero_allow_untested_optimizer"]
    assert native["optimizer"]["params"] == {
        "lr": 0.5,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
    }


@pytest.mark.parametrize(
    ("native", "ours"),
    [
        ({"zero_optimization": {"stage": 1}}, True),
        ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}, True),
        ({"zero_optimization": {"stage": 0}}, False),
        ({"zero_optimization": {"stage": 1}, "optimizer": {"type": "Adamax"}}, False),
        ({"zero_optimization": {"stage": 1}, "optimizer": {"params": {"foreach": True}}}, False),
        ({"zero_optimization": {"stage": 1}, "optimizer": {"params": {"amsgrad": True}}}, False),
        (
            {
                "zero_optimization": {"stage": 1},
                "bf16": {"enabled": "auto", "bf16_master_weights_and_grads": True},
            },
            False,
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, False),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}, True),
        (
            {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
            False,
        ),
    ],
)
def test_the_update_in_one_pass_is_for_torchs_fused_adam_sharded_on_the_device(
    resolve, native, ours
):
    assert updates_in_one_pass(resolve(native, "train.precision=fp32")) is ours


def test_ep_size_binds_sparse_models_only(resolve):
    resolve({}, "moe.ep_size=4", "model.kind=mt_dense", ranks=2)
    resolve({}, "moe.ep_size=2", ranks=4)


def test_deepspeeds_check_that_gradients_are_finite_stays_on(resolve):
    for native, words in (
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm"),
        ({"bf16": {"check_grad_overflow": False}}, "check_grad_overflow"),
    ):
        with pytest.raises(UserError, match=f"{words} = false: a step whose gradients"):
            resolve(native, "train.clip=0")


ZERO1 = {"zero_optimization": {"stage": 1}}
CONTRADICTIONS = [
    (
        {"train_batch_size": 64},
        [],
        f"train_batch_size = 64 contradicts train.batch_size = 32; {AUTO}",
    ),
    (
        {"train_batch_size": "32"},
        [],
        f'train_batch_size = "32" contradicts train.batch_size = 32; {AUTO}',
    ),
    (
        {"gradient_accumulation_steps": 1},
        [],
        f"gradient_accumulation_steps = 1 contradicts train.accumulation = 2; {AUTO}",
    ),
    (
        {"train_micro_batch_size_per_gpu": 8},
        [],
        "train_micro_batch_size_per_gpu = 8 contradicts train.batch_size = 32 over 4 ranks x "
        f"train.accumulation = 2, which is 4; {AUTO}",
    ),
    (
        {"gradient_clipping": 5},
        [],
        f"gradient_clipping = 5 contradicts train.clip = 1.0; {AUTO}",
    ),
    (
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}},
        [],
        f"optimizer.params.lr = 0.1 contradicts train.lr = 0.0001; {AUTO}",
    ),
    (
        {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.98]}}},
        [],
        "optimizer.params.betas = [0.9, 0.98] contradicts train.betas = [0.9, 0.999]; " + AUTO,
    ),
    ({"optimizer": {"type": "Lamb"}}, [], "optimizer.type = 'Lamb'; allowed: Adam, AdamW, Adamax"),
    ({"optimizer": "AdamW"}, [], "optimizer = 'AdamW'; allowed: a JSON object"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {}}},
        [],
        "scheduler.type = 'WarmupLR' contradicts train.warmup: the YAML sets warm-up and linear "
        "decay; allowed: no scheduler section",
    ),
    (
        ZERO1 | {"bf16": {"enabled": True}},
        [],
        f"bf16.enabled = true contradicts train.precision = fp32; {AUTO}",
    ),
    (
        ZERO1 | {"bf16": {"enabled": False}},
        ["train.precision=bf16"],
        f"bf16.enabled = false contradicts train.precision = bf16; {AUTO}",
    ),
    (
        ZERO1 | {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
        ["train.precision=bf16"],
        "bf16.enabled and fp16.enabled are both true; allowed: one of them",
    ),
    (
        {"torch_autocast": {"enabled": True}},
        [],
        "torch_autocast.enabled = true contradicts train.precision = fp32; allowed: no "
        "torch_autocast, the precision is the YAML's",
    ),
    ({"bfloat16": {}}, [], "bfloat16 is DeepSpeed's old name; allowed: bf16"),
    (
        {},
        ["train.precision=bf16"],
        "zero_optimization.stage = 0 with train.precision = bf16: DeepSpeed scales the first "
        "update wrongly there; allowed: stage 1 or 2, or fp32",
    ),
    (
        {"zero_optimization": {"stage": 3}},
        [],
        "zero_optimization.stage = 3 with model.kind = mt_tag: DeepSpeed refuses it with native "
        "MoE layers; allowed: 0, 1, 2",
    ),
    (
        {"zero_optimization": {"stage": 3}},
        ["model.kind=mt_dense"],
        "zero_optimization.stage = 3 with model.kind = mt_dense: the dense model keeps to what "
        "the sparse ones train with; allowed: 0, 1, 2",
    ),
    (
        {"zero_optimization": {"stage": "auto"}},
        [],
        "zero_optimization.stage = 'auto'; allowed: 0, 1, 2 (never auto)",
    ),
    (
        {"zero_optimization": {"stage": True}},
        [],
        "zero_optimization.stage = True; allowed: 0, 1, 2 (never auto)",
    ),
    (
        {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}},
        [],
        'zero_optimization.reduce_bucket_size = "auto" has nothing to fill it; give its value',
    ),
    (
        {"train_batchsize": 32},
        [],
        "unknown key train_batchsize; nearest known key: train_batch_size",
    ),
    ("[]", [], "not a JSON object; allowed: DeepSpeed's own configuration"),
    ('{"fp16": {}, "fp16": {}}', [], "fp16 is given twice"),
]


@pytest.mark.parametrize("native, overrides, line", CONTRADICTIONS)
def test_a_contradiction_names_both_sides_in_one_line(resolve, native, overrides, line):
    with pytest.raises(UserError) as error:
        resolve(native, *overrides)
    assert str(error.value) == f"ds.json: {line}"


@pytest.mark.parametrize(
    "overrides, line",
    [
        (
            ["train.batch_size=7"],
            "train.batch_size = 7 is smaller than 4 ranks x train.accumulation = 2; "
            "allowed: at least one example each",
        ),
        (
            ["moe.num_experts=12", "moe.ep_size=3"],
            "moe.ep_size = 3 does not divide the number of ranks, 4; "
            "allowed: an ep_size that divides it and moe.num_experts, or run.elastic=true",
        ),
        (
            ["train.precision=fp16"],
            "train.precision = fp16 does not run on a CPU; allowed there: bf16, fp32",
        ),
    ],
)
def test_what_these_ranks_cannot_do_is_no_fault_of_the_json(resolve, overrides, line):
    with pytest.raises(UserError) as error:
        resolve(ZERO1, *overrides)
    assert str(error.value) == line


def test_what_is_not_json_names_the_line(resolve):
    with pytest.raises(UserError) as error:
        resolve('{\n"fp16": {},\n}')
    assert str(error.value).startswith("ds.json:3: not valid JSON: ")
    assert "\n" not in str(error.value)


def test_the_throughput_timer_runs_only_where_it_is_asked_for(resolve):
    assert resolve({})["timers"] == {"throughput": {"enabled": False}}
    asked = {"throughput": {"enabled": True, "synchronized": False}}
    assert resolve({"timers": asked})["timers"] == asked


@pytest.mark.parametrize(
    ("zero", "route"),
    [({"stage": 1, "overlap_comm": True}, "learned"), ({"stage": 2}, "random_instance")],
)
def test_gradients_that_ranks_reduce_in_other_orders_are_refused(resolve, zero, route):
    overrides = "model.kind=task_moe", f"router.route={route}"
    with pytest.raises(UserError, match="task_moe on 4 ranks"):
        resolve({"zero_optimization": zero}, *overrides)
    resolve({"zero_optimization": zero}, *overrides, ranks=1)
    resolve({"zero_optimization": zero})


def test_kernels_asked_for_by_name_want_an_update_that_has_them(resolve):
    by_name = "train.update_kernels=triton"
    for native in ({"optimizer": {"type": "Adamax"}}, {"zero_optimization": {"stage": 0}}):
        with pytest.raises(
            UserError, match="train.update_kernels = triton .*; allowed: auto, torch"
        ):
            resolve({"zero_optimization": {"stage": 1}, **native}, by_name)
    assert updates_in_one_pass(resolve({"zero_optimization": {"stage": 1}}, by_name))

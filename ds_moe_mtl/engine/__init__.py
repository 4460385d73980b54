"""DeepSpeed's engine, made ours: its set-up, update, clipping, checkpoints read and reshaped.

Beyond its documented functions this package, and ds_moe_mtl.moe, lean on the following of
DeepSpeed. contract.py holds the same names and looks for them before a run starts; moe/version.py
has the range of releases that is admitted. All of it was read and is tested in 0.19.8; the names
are those of 0.19.4 too.

Replaced or patched

    DeepSpeedZeroOptimizer: step, scaled_global_norm, get_grad_norm_direct
        zero_update.py puts its own in their place: theirs pass over memory once for each thing
        they do, ours twice in all, with the same weights bit for bit; and they ask the other
        ranks for the norm of each group, ours once.
    DeepSpeedZeroOptimizer: setup_buckets, reduce_ready_partitions_and_remove_grads
    DeepSpeedZeroOptimizer: reduce_ipg_grads
        zero_update.py empties them on one rank, where there is nothing to reduce: no bucket, and
        no copies of the gradients into it and back.
    DeepSpeedEngine: checkpoint_engine
        unpickle.py replaces its `load`: DeepSpeed unpickles whatever a file holds, ours tensors
        and the classes on a list.
    CheckpointEngine: load
        What unpickle.py replaces on the engine's own checkpoint_engine.
    DynamicLossScaler: raise_error_at_min_scale
        engine.py sets it to False: train.max_skipped ends such a run, and names the examples.
    deepspeed.ops: __compatible_ops__
        engine.py sets "deepspeed_shm_comm" to False on a CPU: it would be compiled inside
        init_distributed, for 24 s, and gloo does without it.
    torch: compile
        engine.py lets it do nothing while deepspeed.runtime.zero.muon is imported, whose
        decorators would import torch's compiler, for 2.5 s at each start of each rank.
    torch.distributed.distributed_c10d: _world, _set_pg_timeout
        engine.py gives the groups that DeepSpeed makes the run's time-out; they have torch's.

Read or called, and private

    DeepSpeedZeroOptimizer: averaged_gradients, all_grad_tensors, params_in_partition
    DeepSpeedZeroOptimizer: _global_grad_norm, _update_scale, clip_grad
    DeepSpeedZeroOptimizer: overflow, loss_scale, loss_scaler, dynamic_loss_scale
    DeepSpeedZeroOptimizer: bit16_groups, bit16_groups_flat, parallel_partitioned_bit16_groups
    DeepSpeedZeroOptimizer: single_partition_of_fp32_groups, optimizer
    DeepSpeedZeroOptimizer: dp_process_group, real_dp_process_group
    DeepSpeedZeroOptimizer: nccl_start_alignment_factor, allgather_bucket_size
        zero_update.py steps on them. clipping.py reads averaged_gradients and the norm to clip
        router and model apart, which DeepSpeed cannot; skipped steps are explained by the rest.
    DeepSpeedZeroOptimizer: _lazy_init_hp_params_optimizer_state, _hp_optimizer_states_linked
        zero_update.py makes them after the first step, as DeepSpeed's own does; reshape.py has
        them made anew, since their views are of older tensors.
    deepspeed.runtime.utils: all_gather_dp_groups
        zero_update.py gathers the weights that other ranks have updated.
    DeepSpeedEngine: skipped_steps, global_steps, global_samples
        engine.py counts a step that is skipped at stage 0; reshape.py restores the counters.
    DeepSpeedEngine: param_names, zero_optimization, fp16_enabled
    DeepSpeedEngine: is_gradient_accumulation_boundary, get_global_grad_norm
        engine.py and clipping.py ask them; reshape.py needs the order of a stage 0 optimizer.
    DeepSpeedEngine: monitor
    MonitorMaster: write_events
    deepspeed.runtime.config: DeepSpeedConfig
        native.py has DeepSpeed read its JSON before the ranks meet, and gives its monitors the
        losses, which its engine does not.
    tensor_fragment: lp_fragment_address, hp_fragment_address, hp_fragment, param_group_index
    fragment_address: start, numel
        reshape.py: where a parameter lies in ZeRO's flat partitions, in memory (a parameter's
        _hp_mapping) and in a checkpoint (param_slice_mappings).
    LossScaler: loss_scale
    ZeroStageEnum: optimizer_states
        Classes that unpickle.py admits, beside DynamicLossScaler and fragment_address.
    MoE: set_deepspeed_parallelism
    MOELayer: _set_ep_group, ep_group, l_aux, exp_counts
    Experts: deepspeed_experts
    TopKGate: _set_ep_group, ep_group
        moe/layer.py, gate.py and stock.py derive from these classes, whose attributes DeepSpeed
        finds expert layers by and writes their checkpoints; the gate's answer is of 0.19.4.
"""

"""Triton kernels of top-1 routing and its gradient.

T tokens, D hidden size, G gates, E experts, E1 = E + 1 (the last: not routed). Tokens go in blocks
of BLOCK_T, one program each; gates' columns go in chunks that hold whole gates (tiles.gate_columns)
and a block only computes the chunks its tokens use: one for up to 128 columns, and otherwise few,
since the tokens of a sequence share their gate.
"""

import triton
import triton.language as tl

from moe_kernels.tiles import gate_columns, gate_dot, split_dot


@triton.jit
def load_gates(gate_ids_ptr, mask_ptr, token, in_range, G: tl.constexpr, HAS_IDS: tl.constexpr,
               HAS_MASK: tl.constexpr):  # fmt: skip
    """Return (gate of each token, whether it is routed). An id out of range is not routed."""
    routed = in_range
    if HAS_MASK:
        routed = routed & (tl.load(mask_ptr + token, mask=in_range, other=0) != 0)
    if HAS_IDS:
        gate = tl.load(gate_ids_ptr + token, mask=in_range, other=0).to(tl.int32)
        routed = routed & (gate >= 0) & (gate < G)
    else:
        gate = tl.zeros_like(token)
    return gate, routed


@triton.jit(do_not_specialize=["num_tokens"])
def choose_kernel(
    x_ptr, gate_weight_ptr, gate_ids_ptr, mask_ptr,
    expert_ptr, prob_ptr, logits_ptr, block_counts_ptr, num_tokens,
    D: tl.constexpr, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, E1_PAD: tl.constexpr,
    CHUNK: tl.constexpr, HAS_IDS: tl.constexpr, HAS_MASK: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write each token's expert, probability and logits, and the block's count of each expert.

    One pass over x: a product with the gates' weights, softmax over the token's own columns.
    """
    block = tl.program_id(0)
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    in_range = token < num_tokens
    gate, routed = load_gates(gate_ids_ptr, mask_ptr, token, in_range, G, HAS_IDS, HAS_MASK)
    x_rows = x_ptr + token.to(tl.int64)[:, None] * D
    expert = tl.full([BLOCK_T], E, tl.int32)
    prob = tl.zeros([BLOCK_T], tl.float32)
    CHUNKS: tl.constexpr = (G * E_PAD + CHUNK - 1) // CHUNK
    for chunk in range(CHUNKS):
        column_gate, column_expert, valid = gate_columns(chunk, G, E, E_PAD, CHUNK)
        own = (gate[:, None] == column_gate[None, :]) & valid[None, :] & routed[:, None]
        if tl.sum(own.to(tl.int32)) > 0:
            weight = gate_weight_ptr + (column_gate * E + column_expert)[None, :] * D
            logits = tl.zeros([BLOCK_T, CHUNK], tl.float32)
            for first in range(0, D, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                x = tl.load(
                    x_rows + d[None, :], mask=in_range[:, None] & (d < D)[None, :], other=0.0
                )
                w = tl.load(weight + d[:, None], mask=valid[None, :] & (d < D)[:, None], other=0.0)
                logits = gate_dot(x, w, logits, NARROW)
            here = tl.sum(own.to(tl.int32), 1) > 0
            best = tl.max(tl.where(own, logits, float("-inf")), 1)
            best = tl.where(here, best, 0.0)
            exp_sum = tl.sum(tl.where(own, tl.exp(logits - best[:, None]), 0.0), 1)
            # The first of equals, as torch.argmax. NaN equals nothing: such a token takes expert 0.
            first_best = tl.where(own & (logits == best[:, None]), column_expert[None, :], E)
            chosen = tl.min(first_best, 1)
            chosen = tl.where(chosen == E, 0, chosen)
            expert = tl.where(here, chosen, expert)
            prob = tl.where(here, 1.0 / tl.where(here, exp_sum, 1.0), prob)
            spot = logits_ptr + token.to(tl.int64)[:, None] * E + column_expert[None, :]
            tl.store(spot, logits, mask=own)
    e = tl.arange(0, E_PAD)
    unrouted = (in_range & (routed == 0))[:, None] & (e < E)[None, :]
    zeros = tl.zeros([BLOCK_T, E_PAD], tl.float32)
    tl.store(logits_ptr + token.to(tl.int64)[:, None] * E + e[None, :], zeros, mask=unrouted)
    tl.store(expert_ptr + token, tl.where(routed, expert, -1), mask=in_range)
    tl.store(prob_ptr + token, prob, mask=in_range)
    segment = tl.arange(0, E1_PAD)
    one_hot = (expert[:, None] == segment[None, :]) & in_range[:, None]
    counts = tl.sum(one_hot.to(tl.int32), 0)
    tl.store(block_counts_ptr + block * (E + 1) + segment, counts, mask=segment <= E)


@triton.jit(do_not_specialize=["num_blocks"])
def scan_kernel(block_counts_ptr, counts_ptr, num_blocks, E1: tl.constexpr, BLOCK: tl.constexpr):
    """Turn a segment's block counts into their running sums, in place, and write its total."""
    segment = tl.program_id(0)
    total = 0
    for first in range(0, num_blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        spot = block_counts_ptr + block * E1 + segment
        count = tl.load(spot, mask=block < num_blocks, other=0)
        tl.store(spot, total + tl.cumsum(count, 0) - count, mask=block < num_blocks)
        total += tl.sum(count, 0)
    tl.store(counts_ptr + segment, total)


@triton.jit(do_not_specialize=["num_tokens"])
def order_kernel(
    expert_ptr, block_before_ptr, counts_ptr, order_ptr, num_tokens,
    E: tl.constexpr, E1_PAD: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write each token's index to its place in expert order; tokens not routed come last."""
    block = tl.program_id(0)
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    in_range = token < num_tokens
    expert = tl.load(expert_ptr + token, mask=in_range, other=-1)
    expert = tl.where(expert < 0, E, expert)
    segment = tl.arange(0, E1_PAD)
    total = tl.load(counts_ptr + segment, mask=segment <= E, other=0)
    before = tl.load(block_before_ptr + block * (E + 1) + segment, mask=segment <= E, other=0)
    start = tl.cumsum(total, 0) - total + before
    one_hot = ((expert[:, None] == segment[None, :]) & in_range[:, None]).to(tl.int32)
    place = tl.cumsum(one_hot, 0) - one_hot + start[None, :]
    place = tl.sum(place * one_hot, 1)
    tl.store(order_ptr + place, token.to(order_ptr.dtype.element_ty), mask=in_range)


@triton.jit(do_not_specialize=["num_tokens"])
def logits_grad_kernel(
    expert_ptr, prob_ptr, logits_ptr, dots_ptr, grad_prob_ptr, grad_in_ptr,
    grad_logits_ptr, num_tokens,
    E: tl.constexpr, E_PAD: tl.constexpr, PARTS: tl.constexpr,
    HAS_PROB: tl.constexpr, HAS_LOGITS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write dL/dlogits from the gradients of the scale (in PARTS), the probability and the logits.

    dp_chosen/dl_e = p_chosen (1[e chosen] - p_e). The parts sum to scale dL/dscale, which is
    p dL/dp whether the scale is p or p / stopgrad(p).
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_range = token < num_tokens
    expert = tl.load(expert_ptr + token, mask=in_range, other=-1)
    routed = expert >= 0
    grad = tl.zeros([BLOCK_T], tl.float32)
    for part in range(PARTS):
        grad += tl.load(dots_ptr + part * num_tokens + token, mask=routed, other=0.0)
    if HAS_PROB:
        prob = tl.load(prob_ptr + token, mask=routed, other=1.0)
        grad += prob * tl.load(grad_prob_ptr + token, mask=routed, other=0.0)
    e = tl.arange(0, E_PAD)
    spot = token.to(tl.int64)[:, None] * E + e[None, :]
    some = routed[:, None] & (e < E)[None, :]
    logits = tl.load(logits_ptr + spot, mask=some, other=float("-inf"))
    logits = tl.where(routed[:, None], logits, 0.0)
    exp = tl.exp(logits - tl.max(logits, 1)[:, None])
    probs = exp / tl.sum(exp, 1)[:, None]
    chosen = (e[None, :] == expert[:, None]).to(tl.float32)
    grad_logits = tl.where(some, grad[:, None] * (chosen - probs), 0.0)
    inside = in_range[:, None] & (e < E)[None, :]
    if HAS_LOGITS:
        grad_logits += tl.load(grad_in_ptr + spot, mask=some, other=0.0)
    tl.store(grad_logits_ptr + spot, grad_logits, mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "tokens_per_split"])
def gate_weight_grad_kernel(
    x_ptr, gate_ids_ptr, grad_logits_ptr, parts_ptr, num_tokens, tokens_per_split,
    D: tl.constexpr, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr,
    TERMS: tl.constexpr, UPCAST: tl.constexpr, HAS_IDS: tl.constexpr, ONE_CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write a split's part of the gates' weight gradient: sum over its tokens of dlogits x."""
    split = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_gate, column_expert, valid = gate_columns(tl.program_id(2), G, E, E_PAD, CHUNK)
    acc = tl.zeros([CHUNK, BLOCK_D], tl.float32)
    end = tl.minimum((split + 1) * tokens_per_split, num_tokens)
    for first in range(split * tokens_per_split, end, BLOCK_T):
        token = first + tl.arange(0, BLOCK_T)
        in_range = token < end
        gate, routed = load_gates(gate_ids_ptr, gate_ids_ptr, token, in_range, G, HAS_IDS, False)
        own = (column_gate[:, None] == gate[None, :]) & valid[:, None] & routed[None, :]
        if ONE_CHUNK:  # no branch in the loop: its loads run ahead of the products
            acc = add_outer_product(acc, own, x_ptr, grad_logits_ptr, token, in_range, d,
                                    column_expert, D, E, TERMS, UPCAST)  # fmt: skip
        else:
            if tl.sum(own.to(tl.int32)) > 0:
                acc = add_outer_product(acc, own, x_ptr, grad_logits_ptr, token, in_range, d,
                                        column_expert, D, E, TERMS, UPCAST)  # fmt: skip
    column = column_gate * E + column_expert
    spot = parts_ptr + split * (G * E * D) + column[:, None] * D + d[None, :]
    tl.store(spot, acc, mask=valid[:, None] & (d < D)[None, :])


@triton.jit
def add_outer_product(
    acc, own, x_ptr, grad_logits_ptr, token, in_range, d, column_expert,
    D: tl.constexpr, E: tl.constexpr, TERMS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return acc + dlogits^T x over a block of tokens."""
    row = token.to(tl.int64)
    spot = grad_logits_ptr + row[None, :] * E + column_expert[:, None]
    grad = tl.load(spot, mask=own, other=0.0)
    some = in_range[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=some, other=0.0)
    return split_dot(grad, x, acc, TERMS, UPCAST)


@triton.jit(do_not_specialize=["num_tokens"])
def gate_input_grad_kernel(
    gate_ids_ptr, grad_logits_ptr, gate_weight_ptr, grad_x_ptr, num_tokens,
    D: tl.constexpr, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr,
    TERMS: tl.constexpr, UPCAST: tl.constexpr, HAS_IDS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write dL/dx of routing alone: each token's dlogits times its gate's weights."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_range = token < num_tokens
    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    acc = add_gate_term(
        acc, token, in_range, d, gate_ids_ptr, grad_logits_ptr, gate_weight_ptr,
        D, G, E, E_PAD, CHUNK, HAS_IDS, TERMS, UPCAST,
    )  # fmt: skip
    spot = grad_x_ptr + token.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(spot, acc.to(grad_x_ptr.dtype.element_ty), mask=in_range[:, None] & (d < D)[None, :])


@triton.jit
def add_gate_term(
    acc, token, in_range, d, gate_ids_ptr, grad_logits_ptr, gate_weight_ptr,
    D: tl.constexpr, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr,
    HAS_IDS: tl.constexpr, TERMS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return acc + dlogits @ gate weights for a tile of tokens and hidden columns d."""
    gate, routed = load_gates(gate_ids_ptr, gate_ids_ptr, token, in_range, G, HAS_IDS, False)
    CHUNKS: tl.constexpr = (G * E_PAD + CHUNK - 1) // CHUNK
    if CHUNKS == 1:
        acc = add_gate_chunk(acc, 0, gate, routed, token, d, grad_logits_ptr, gate_weight_ptr,
                             D, G, E, E_PAD, CHUNK, TERMS, UPCAST)  # fmt: skip
    else:
        for chunk in range(CHUNKS):
            here = (gate // (CHUNK // E_PAD) == chunk) & routed
            if tl.sum(here.to(tl.int32)) > 0:
                acc = add_gate_chunk(
                    acc, chunk, gate, routed, token, d, grad_logits_ptr, gate_weight_ptr,
                    D, G, E, E_PAD, CHUNK, TERMS, UPCAST,
                )  # fmt: skip
    return acc


@triton.jit
def add_gate_chunk(
    acc, chunk, gate, routed, token, d, grad_logits_ptr, gate_weight_ptr,
    D: tl.constexpr, G: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr,
    TERMS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return acc + dlogits @ gate weights of one chunk of the gates' columns."""
    column_gate, column_expert, valid = gate_columns(chunk, G, E, E_PAD, CHUNK)
    own = (gate[:, None] == column_gate[None, :]) & valid[None, :] & routed[:, None]
    spot = grad_logits_ptr + token.to(tl.int64)[:, None] * E + column_expert[None, :]
    grad = tl.load(spot, mask=own, other=0.0)
    weight = gate_weight_ptr + (column_gate * E + column_expert)[:, None] * D + d[None, :]
    w = tl.load(weight, mask=valid[:, None] & (d < D)[None, :], other=0.0)
    return split_dot(grad, w, acc, TERMS, UPCAST)

// Launches of the CUDA routing and permutation kernels. Plain C++: neither torch nor CUDA headers.
//
// T tokens, R rows in expert order, D hidden size, G gates, E experts. Pointers are device addresses,
// counts and indices int32, probabilities and logits float32. Nothing waits for the device; every
// function returns the error code of its launches, 0 for none.

#pragma once

#include <cstdint>

enum class Type : int { f32 = 0, f16 = 1, bf16 = 2 };

// Tokens of one block of moe_choose and moe_order: block_counts has ceil(T / 64) rows.
constexpr int kBlockTokens = 64;

// Expert, probability and logits of each token under its own gate, and each block's expert counts.
// gate_ids (int64) and mask (bytes) may be null. A gate id out of range is not routed (expert -1).
int moe_choose(Type x_type, Type weight_type, const void* x_TD, const void* weight,
               const int64_t* gate_ids_T, const uint8_t* mask_T, int32_t* expert_T, float* prob_T,
               float* logits_TE, int32_t* block_counts, int tokens, int hidden, int gates,
               int experts, void* stream);

// Totals of every segment (E experts, then the tokens that are not routed) and the stable order.
int moe_order(const int32_t* expert_T, int32_t* block_counts, int32_t* counts_E1, int32_t* order_T,
              int tokens, int experts, void* stream);

// y_RD[r] = scale x_TD[order[r]]; with other_RD also dots[order[r]] = <x_TD[order[r]], other_RD[r]>.
int moe_gather(Type type, const void* x_TD, const int32_t* order, const float* scale_T, void* y_RD,
               const void* other_RD, float* dots_T, int rows, int hidden, void* stream);

// x_TD[order[r]] = scale y_RD[r] for r < R, and 0 for the other tokens.
int moe_scatter(Type type, const void* y_RD, const int32_t* order, const float* scale_T, void* x_TD,
                int rows, int tokens, int hidden, void* stream);

// Top-1 routing and row permutation in CUDA C++. See moe_routing.h for what each launch writes.
//
// A warp takes four neighbouring tokens: in a packed batch they nearly always belong to one sequence
// and so to one gate, whose weights are then read once for all four. Rows move as 16-byte vectors
// where the hidden size allows. Sums run in a fixed order, so two runs agree to the bit.

#include "moe_routing.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr int kWarp = 32;
constexpr int kTokensOfWarp = 4;
constexpr int kWarps = 4;
constexpr int kExpertsAtOnce = 4;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kBlockTokens % (kTokensOfWarp * kWarps) == 0, "a block takes whole turns");

__device__ float widen(float value) { return value; }
__device__ float widen(__half value) { return __half2float(value); }
__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
template <typename T> __device__ T narrow(float value);
template <> __device__ float narrow<float>(float value) { return value; }
template <> __device__ __half narrow<__half>(float value) { return __float2half_rn(value); }
template <> __device__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

template <typename T, int N> struct alignas(sizeof(T) * N) Vector {
    T value[N];
};

template <typename T, int N> __device__ void load(float (&out)[N], const T* from) {
    const Vector<T, N> raw = *reinterpret_cast<const Vector<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = widen(raw.value[i]);
}

template <typename T, int N> __device__ void store(T* to, const float (&values)[N]) {
    Vector<T, N> raw;
#pragma unroll
    for (int i = 0; i < N; ++i) raw.value[i] = narrow<T>(values[i]);
    *reinterpret_cast<Vector<T, N>*>(to) = raw;
}

__device__ float warp_sum(float value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

// acc[t][e] += x[t] . weight[gate[t] * E + first + e], this lane's share of the hidden columns.
template <typename X, typename W, int N>
__device__ void dot_products(float (&acc)[kTokensOfWarp][kExpertsAtOnce], const X* x,
                             const W* weight, const int (&gate)[kTokensOfWarp], bool one_gate,
                             int here, int first, int wanted, int hidden, int experts) {
    const int lane = threadIdx.x % kWarp;
    for (int d = lane * N; d < hidden; d += kWarp * N) {
        float xs[kTokensOfWarp][N], ws[N];
#pragma unroll
        for (int t = 0; t < kTokensOfWarp; ++t)
            if (t < here) load<X, N>(xs[t], x + static_cast<int64_t>(t) * hidden + d);
#pragma unroll
        for (int e = 0; e < kExpertsAtOnce; ++e) {
            if (e >= wanted) break;
#pragma unroll
            for (int t = 0; t < kTokensOfWarp; ++t) {
                if (t >= here) break;
                if (t == 0 || !one_gate) {
                    const int64_t row = static_cast<int64_t>(gate[t]) * experts + first + e;
                    load<W, N>(ws, weight + row * hidden + d);
                }
#pragma unroll
                for (int i = 0; i < N; ++i) acc[t][e] += xs[t][i] * ws[i];
            }
        }
    }
}

template <typename X, typename W, int N>
__global__ void choose_kernel(const X* x_TD, const W* weight, const int64_t* gate_ids_T,
                              const uint8_t* mask_T, int32_t* expert_T, float* prob_T,
                              float* logits_TE, int32_t* block_counts, int tokens, int hidden,
                              int gates, int experts) {
    extern __shared__ int32_t counts[];
    for (int e = threadIdx.x; e <= experts; e += blockDim.x) counts[e] = 0;
    __syncthreads();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int turn = warp; turn < kBlockTokens / kTokensOfWarp; turn += kWarps) {
        const int token = blockIdx.x * kBlockTokens + turn * kTokensOfWarp;
        if (token >= tokens) break;
        const int here = min(kTokensOfWarp, tokens - token);
        int gate[kTokensOfWarp] = {};
        bool routed[kTokensOfWarp] = {}, one_gate = true;
        for (int t = 0; t < here; ++t) {
            const int64_t id = gate_ids_T ? gate_ids_T[token + t] : 0;
            routed[t] = id >= 0 && id < gates && (!mask_T || mask_T[token + t]);
            gate[t] = routed[t] ? static_cast<int>(id) : 0;
            one_gate = one_gate && gate[t] == gate[0];
        }
        float best[kTokensOfWarp], sum[kTokensOfWarp] = {};
        int chosen[kTokensOfWarp] = {};
        for (int t = 0; t < kTokensOfWarp; ++t) best[t] = -INFINITY;
        for (int first = 0; first < experts; first += kExpertsAtOnce) {
            const int wanted = min(kExpertsAtOnce, experts - first);
            float acc[kTokensOfWarp][kExpertsAtOnce] = {};
            dot_products<X, W, N>(acc, x_TD + static_cast<int64_t>(token) * hidden, weight, gate,
                                  one_gate, here, first, wanted, hidden, experts);
#pragma unroll
            for (int t = 0; t < kTokensOfWarp; ++t) {
                if (t >= here) break;
#pragma unroll
                for (int e = 0; e < kExpertsAtOnce; ++e) {
                    if (e >= wanted) break;
                    const float logit = warp_sum(acc[t][e]);
                    if (lane == 0) {
                        const int64_t spot = static_cast<int64_t>(token + t) * experts + first + e;
                        logits_TE[spot] = routed[t] ? logit : 0.0f;
                    }
                    // Softmax as the logits come: the sum is kept relative to the best so far.
                    if (logit > best[t]) {
                        sum[t] = sum[t] * expf(best[t] - logit) + 1.0f;
                        best[t] = logit;
                        chosen[t] = first + e;
                    } else {
                        sum[t] += expf(logit - best[t]);
                    }
                }
            }
        }
        if (lane == 0) {
            for (int t = 0; t < here; ++t) {
                expert_T[token + t] = routed[t] ? chosen[t] : -1;
                prob_T[token + t] = routed[t] ? 1.0f / sum[t] : 0.0f;
                atomicAdd(&counts[routed[t] ? chosen[t] : experts], 1);
            }
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e <= experts; e += blockDim.x)
        block_counts[static_cast<int64_t>(blockIdx.x) * (experts + 1) + e] = counts[e];
}

// One block a segment: its counts become their running sums, in place, and its total is written.
__global__ void scan_kernel(int32_t* block_counts, int32_t* counts_E1, int blocks, int segments) {
    constexpr int kMaxWarps = 32;
    __shared__ int32_t warp_totals[kMaxWarps];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    int32_t before = 0;
    for (int first = 0; first < blocks; first += blockDim.x) {
        const int block = first + threadIdx.x;
        int32_t* spot = block_counts + static_cast<int64_t>(block) * segments + blockIdx.x;
        const int32_t count = block < blocks ? *spot : 0;
        int32_t running = count;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int32_t left = __shfl_up_sync(kAllLanes, running, step);
            if (lane >= step) running += left;
        }
        if (lane == kWarp - 1) warp_totals[warp] = running;
        __syncthreads();
        int32_t total = 0;
        for (int w = 0; w < warps; ++w) {
            if (w == warp) running += total;
            total += warp_totals[w];
        }
        if (block < blocks) *spot = before + running - count;
        before += total;
        __syncthreads();
    }
    if (threadIdx.x == 0) counts_E1[blockIdx.x] = before;
}

__global__ void order_kernel(const int32_t* expert_T, const int32_t* block_before,
                             const int32_t* counts_E1, int32_t* order_T, int tokens, int experts) {
    __shared__ int32_t segment_of[kBlockTokens];
    const int token = blockIdx.x * kBlockTokens + threadIdx.x;
    const int32_t expert = token < tokens ? expert_T[token] : -1;
    const int32_t segment = expert < 0 ? experts : expert;
    segment_of[threadIdx.x] = segment;
    __syncthreads();
    if (token >= tokens) return;
    int32_t place = block_before[static_cast<int64_t>(blockIdx.x) * (experts + 1) + segment];
    for (int e = 0; e < segment; ++e) place += counts_E1[e];
    for (int t = 0; t < threadIdx.x; ++t) place += segment_of[t] == segment;
    order_T[place] = token;
}

// A warp moves a row.
template <typename T, int N>
__global__ void gather_kernel(const T* x_TD, const int32_t* order, const float* scale_T, T* y_RD,
                              const T* other_RD, float* dots_T, int rows, int hidden) {
    const int row = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (row >= rows) return;
    const int token = order[row];
    const T* from = x_TD + static_cast<int64_t>(token) * hidden;
    const int64_t start = static_cast<int64_t>(row) * hidden;
    float dot = 0.0f;
    for (int d = lane * N; d < hidden; d += kWarp * N) {
        float values[N], others[N];
        load<T, N>(values, from + d);
        if (other_RD) {
            load<T, N>(others, other_RD + start + d);
#pragma unroll
            for (int i = 0; i < N; ++i) dot += values[i] * others[i];
        }
        if (scale_T) {
            const float scale = scale_T[token];
#pragma unroll
            for (int i = 0; i < N; ++i) values[i] *= scale;
        }
        store<T, N>(y_RD + start + d, values);
    }
    if (other_RD) {
        dot = warp_sum(dot);
        if (lane == 0) dots_T[token] = dot;
    }
}

template <typename T, int N>
__global__ void scatter_kernel(const T* y_RD, const int32_t* order, const float* scale_T, T* x_TD,
                               int rows, int tokens, int hidden) {
    const int row = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (row >= tokens) return;
    const int token = order[row];
    const float scale = scale_T && row < rows ? scale_T[token] : 1.0f;
    T* to = x_TD + static_cast<int64_t>(token) * hidden;
    for (int d = lane * N; d < hidden; d += kWarp * N) {
        float values[N] = {};
        if (row < rows) load<T, N>(values, y_RD + static_cast<int64_t>(row) * hidden + d);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] *= scale;
        store<T, N>(to + d, values);
    }
}

int blocks_of(int items, int each) { return (items + each - 1) / each; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls function(T{}) with the C++ type of `type`.
template <typename Function> void with_type(Type type, Function function) {
    if (type == Type::f32) function(float{});
    if (type == Type::f16) function(__half{});
    if (type == Type::bf16) function(__nv_bfloat16{});
}

}  // namespace

int moe_choose(Type x_type, Type weight_type, const void* x_TD, const void* weight,
               const int64_t* gate_ids_T, const uint8_t* mask_T, int32_t* expert_T, float* prob_T,
               float* logits_TE, int32_t* block_counts, int tokens, int hidden, int gates,
               int experts, void* stream) {
    if (tokens == 0) return 0;
    const int blocks = blocks_of(tokens, kBlockTokens), threads = kWarps * kWarp;
    const size_t shared = sizeof(int32_t) * (experts + 1);
    const bool wide = hidden % 4 == 0 && aligned(x_TD) && aligned(weight);
    with_type(x_type, [&](auto x) {
        using X = decltype(x);
        with_type(weight_type, [&](auto w) {
            using W = decltype(w);
            // Vectors of four: 8 bytes in 16 bit, 16 in float32, and 16 running sums fit registers.
            auto kernel = wide ? choose_kernel<X, W, 4> : choose_kernel<X, W, 1>;
            kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(stream)>>>(
                static_cast<const X*>(x_TD), static_cast<const W*>(weight), gate_ids_T, mask_T,
                expert_T, prob_T, logits_TE, block_counts, tokens, hidden, gates, experts);
        });
    });
    return cudaGetLastError();
}

int moe_order(const int32_t* expert_T, int32_t* block_counts, int32_t* counts_E1, int32_t* order_T,
              int tokens, int experts, void* stream) {
    const auto queue = static_cast<cudaStream_t>(stream);
    const int blocks = blocks_of(tokens, kBlockTokens);
    scan_kernel<<<experts + 1, 256, 0, queue>>>(block_counts, counts_E1, blocks, experts + 1);
    if (blocks > 0)
        order_kernel<<<blocks, kBlockTokens, 0, queue>>>(expert_T, block_counts, counts_E1, order_T,
                                                         tokens, experts);
    return cudaGetLastError();
}

int moe_gather(Type type, const void* x_TD, const int32_t* order, const float* scale_T, void* y_RD,
               const void* other_RD, float* dots_T, int rows, int hidden, void* stream) {
    if (rows == 0) return 0;
    with_type(type, [&](auto t) {
        using T = decltype(t);
        constexpr int kWide = 16 / sizeof(T);
        const bool wide = hidden % kWide == 0 && aligned(x_TD) && aligned(other_RD);
        auto kernel = wide ? gather_kernel<T, kWide> : gather_kernel<T, 1>;
        kernel<<<blocks_of(rows, kWarps), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(x_TD), order, scale_T, static_cast<T*>(y_RD),
            static_cast<const T*>(other_RD), dots_T, rows, hidden);
    });
    return cudaGetLastError();
}

int moe_scatter(Type type, const void* y_RD, const int32_t* order, const float* scale_T, void* x_TD,
                int rows, int tokens, int hidden, void* stream) {
    if (tokens == 0) return 0;
    with_type(type, [&](auto t) {
        using T = decltype(t);
        constexpr int kWide = 16 / sizeof(T);
        const bool wide = hidden % kWide == 0 && aligned(y_RD);
        auto kernel = wide ? scatter_kernel<T, kWide> : scatter_kernel<T, 1>;
        kernel<<<blocks_of(tokens, kWarps), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(y_RD), order, scale_T, static_cast<T*>(x_TD), rows, tokens,
            hidden);
    });
    return cudaGetLastError();
}

// The Python names of the launches in moe_routing.h. Tensors come as addresses, a stream as its
// handle, so this file needs neither torch's headers nor CUDA's.

#include "moe_routing.h"

#include <pybind11/pybind11.h>

namespace {

template <typename T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

int choose(int x_type, int weight_type, uintptr_t x, uintptr_t weight, uintptr_t gate_ids,
           uintptr_t mask, uintptr_t expert, uintptr_t prob, uintptr_t logits,
           uintptr_t block_counts, int tokens, int hidden, int gates, int experts,
           uintptr_t stream) {
    return moe_choose(static_cast<Type>(x_type), static_cast<Type>(weight_type), at<void>(x),
                      at<void>(weight), at<int64_t>(gate_ids), at<uint8_t>(mask),
                      at<int32_t>(expert), at<float>(prob), at<float>(logits),
                      at<int32_t>(block_counts), tokens, hidden, gates, experts, at<void>(stream));
}

int order(uintptr_t expert, uintptr_t block_counts, uintptr_t counts, uintptr_t order, int tokens,
          int experts, uintptr_t stream) {
    return moe_order(at<int32_t>(expert), at<int32_t>(block_counts), at<int32_t>(counts),
                     at<int32_t>(order), tokens, experts, at<void>(stream));
}

int gather(int type, uintptr_t x, uintptr_t order, uintptr_t scale, uintptr_t y, uintptr_t other,
           uintptr_t dots, int rows, int hidden, uintptr_t stream) {
    return moe_gather(static_cast<Type>(type), at<void>(x), at<int32_t>(order), at<float>(scale),
                      at<void>(y), at<void>(other), at<float>(dots), rows, hidden,
                      at<void>(stream));
}

int scatter(int type, uintptr_t y, uintptr_t order, uintptr_t scale, uintptr_t x, int rows,
            int tokens, int hidden, uintptr_t stream) {
    return moe_scatter(static_cast<Type>(type), at<void>(y), at<int32_t>(order), at<float>(scale),
                       at<void>(x), rows, tokens, hidden, at<void>(stream));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    module.attr("block_tokens") = kBlockTokens;
    module.def("choose", &choose);
    module.def("order", &order);
    module.def("gather", &gather);
    module.def("scatter", &scatter);
}

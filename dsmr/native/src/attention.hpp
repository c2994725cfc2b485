// One token's attention over a chunk of a ring: the row kernels of recurrent_attention, without what a step never asks.
#pragma once

#include "few_rows.hpp"

namespace dsmr::DSMR_ISA {

template <class T>
DSMR_INLINE const T* moved(const T* p, int64_t count) {
    return p ? p + count : nullptr;
}

// An online softmax of queries [rows][padded dim], scaled for base 2, over consecutive slots of one lane and KV head.
template <class T>
static void attend(const KeyBlock<T>& slots, const float* q, int rows, int dim, const RowSums& sums) {
    sums.clear(rows, dim);
    for (int64_t first = 0; first < slots.count; first += ROW_KEYS<T>) {
        KeyBlock<T> block = slots;
        block.keys += first * slots.key_stride, block.values += first * slots.value_stride;
        block.key_scale = moved(slots.key_scale, first), block.value_scale = moved(slots.value_scale, first);
        block.count = least(ROW_KEYS<T>, slots.count - first);
        attend_rows<AsFloats<T>>(block, q, rows, dim, sums, [](auto, int64_t, float*) { return 1.0f; });
    }
}

DSMR_INLINE float dot_product(const float* a, const float* b, int dim) {
    Vec products = broadcast(0);
    int d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) products = fma(load(a + d), load(b + d), products);
    float total = sum(products);
    for (; d < dim; ++d) total += a[d] * b[d];
    return total;
}

} // namespace dsmr::DSMR_ISA

// One token's attention over a chunk of a ring: the row kernels of recurrent_attention, without what a step never asks.
#pragma once

#include "decode_bytes.hpp"

namespace dsmr::DSMR_ISA {

template <class T>
DSMR_INLINE const T* moved(const T* p, int64_t count) {
    return p ? p + count : nullptr;
}

template <class Math>
DSMR_INLINE void attend_as(const KeyBlock<typename Math::Key>& slots, const typename Math::Query* q, int rows, int dim,
                           const RowSums& sums) {
    sums.clear(rows, dim);
    for (int64_t first = 0; first < slots.count; first += Math::KEYS) {
        KeyBlock<typename Math::Key> block = slots;
        block.keys += first * slots.key_stride, block.values += first * slots.value_stride;
        block.key_scale = moved(slots.key_scale, first), block.value_scale = moved(slots.value_scale, first);
        block.count = least(Math::KEYS, slots.count - first);
        attend_rows<Math>(block, q, rows, dim, sums, [](auto, int64_t, float*) { return 1.0f; });
    }
}

// An online softmax of queries [rows][padded dim], scaled for base 2, over consecutive slots of one lane and KV head.
template <class T>
static void attend(const KeyBlock<T>& slots, const float* q, int rows, int dim, const RowSums& sums) {
#ifdef __AVX512VNNI__
    if constexpr (std::is_same_v<T, int8_t>) {
        ByteQueries bytes;
        if (bytes.assign(q, rows, dim)) return attend_as<AsBytes>(slots, bytes.row, rows, dim, sums);
    }
#endif
    attend_as<AsFloats<T>>(slots, q, rows, dim, sums);
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

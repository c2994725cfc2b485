// Blocks of which some rows see some keys only. In a product, a weight of 0 does not hide what is not finite: 0 x NaN is
// NaN. A block that holds it is added pair by pair, without those that are hidden; looking for it is all that others pay.
#pragma once

#include "logits.hpp"

namespace dsmr::DSMR_ISA {

// Do not all rows see this block, and is something in these rows of it, or in their scales, not finite?
DSMR_INLINE bool is_mixed(const Block& block, const Rows& rows, const float* scales, int64_t dim) {
    return block.masked && !all_finite(rows, scales, block.count, dim);
}

// table[d][row] += sum over keys of weight[key][row] scale[key] data[key][d], without pairs whose weight is 0. What it
// sums, it sums as gemm does. Weights are an operand along the keys, not yet scaled; `scales` may be null.
template <class Math, int ROWS>
static __attribute__((noinline)) void add_seen(const Rows& data, const float* scales, int64_t count, int64_t dim,
                                               const typename Math::Word* weights, float* table) {
    alignas(ALIGNMENT) float key[padded(LARGEST_DIM)], weight[ROWS], seen[ROWS];
    const Vec zero = broadcast(0.0f);
    for (int64_t k = 0; k < count; ++k) {
        with_type(from_row(data, k).data, data.type, [&](auto* p) { copy_row(p, dim, 1.0f, key, padded(dim)); });
        for (int row = 0; row < ROWS; ++row) {
            const float w = Math::key_value(weights, ROWS, k, row);
            weight[row] = scales ? w * scales[k] : w;
            seen[row] = w != 0;
        }
        for (int64_t d = 0; d < dim; ++d) {
            for (int row = 0; row < ROWS; row += WIDTH) {
                float* const to = table + d * ROWS + row;
                const Vec sum = fma(broadcast(key[d]), load(weight + row), load(to));
                store(to, select_less(zero, load(seen + row), sum, load(to)));
            }
        }
    }
}

} // namespace dsmr::DSMR_ISA

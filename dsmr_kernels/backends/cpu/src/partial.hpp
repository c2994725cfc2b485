// Blocks of which some rows see some keys only. In a product, a weight of 0 does not hide what is not finite: 0 x NaN is
// NaN. A block that holds it is added pair by pair, without those that are hidden; looking for it is all that others pay.
#pragma once

#include "logits.hpp"

namespace dsmr::DSMR_ISA {

// Do not all rows see this block, and is something in these rows of it, or in their scales, not finite?
DSMR_INLINE bool is_mixed(const Block& block, const Rows& rows, const float* scales, int64_t dim) {
    if (!block.masked) return false;
    return !(all_finite(rows, block.count, dim) && (!scales || all_finite(scales, 0, 1, block.count)));
}

// table[d][lane] += sum over keys of weight[key][lane] scale[key] row[key][d], without pairs whose weight is 0. What it
// sums, it sums as gemm does. Weights are an operand along the keys, not yet scaled; `scales` may be null.
template <class Math, int LANES>
static __attribute__((noinline)) void add_seen(const Rows& rows, const float* scales, int64_t count, int64_t dim,
                                               const typename Math::Word* weights, float* table) {
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)], weight[LANES], seen[LANES];
    const Vec zero = broadcast(0.0f);
    for (int64_t k = 0; k < count; ++k) {
        const void* const data = from_row(rows, k).data;
        with_type(data, rows.type, [&](auto* p) { copy_row(p, dim, 1.0f, row, padded(dim)); });
        for (int lane = 0; lane < LANES; ++lane) {
            const float w = Math::key_value(weights, LANES, k, lane);
            weight[lane] = scales ? w * scales[k] : w;
            seen[lane] = w != 0;
        }
        for (int64_t d = 0; d < dim; ++d) {
            for (int lane = 0; lane < LANES; lane += WIDTH) {
                float* const to = table + d * LANES + lane;
                const Vec sum = fma(broadcast(row[d]), load(weight + lane), load(to));
                store(to, select_less(zero, load(seen + lane), sum, load(to)));
            }
        }
    }
}

} // namespace dsmr::DSMR_ISA

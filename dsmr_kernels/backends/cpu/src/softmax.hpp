// An online softmax: sums over some keys that other keys' are added to (Milakov and Gimelshein 2018, "Online normalizer
// calculation for softmax"). Logits are in base 2, and weights are measured from the highest of a row.
#pragma once

#include "operands.hpp"

namespace dsmr::DSMR_ISA {

constexpr float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;
constexpr float HIDDEN = -__builtin_inff(); // the logit of a key that a row does not see
constexpr float LOWEST = -3.40282347e38f;   // the lowest logit of a key that a row may see
constexpr float COARSE = 0x1p24f;           // beyond it, floats are more than 1 apart

// What is added to a row's logits, whose largest is `base`, to measure weights from it. Of a row that has seen nothing
// yet, which is HIDDEN, it is 0: HIDDEN - HIDDEN would be NaN.
DSMR_INLINE Vec minus_base(Vec base) {
    const Vec zero = broadcast(0.0f);
    return select_less(base, broadcast(LOWEST), zero, sub(zero, base));
}
// Is some base so large that factor x product - base has to be rounded twice? Rounded once, it would be the rounding
// error of the base, which is no weight's exponent.
DSMR_INLINE bool is_coarse(Vec minus_base) {
    return any_greater(max(minus_base, sub(broadcast(0.0f), minus_base)), broadcast(COARSE));
}
// The logits, rounded; `size` is filled up to vectors.
DSMR_INLINE void apply_factor(float* s, int64_t size, float factor) {
    for (int64_t i = 0; i < size; i += WIDTH) store(s + i, mul(load(s + i), broadcast(factor)));
}
// A key's weight, or, measured from the lse, its probability. VALUES: of an operand's word.
template <int VALUES>
DSMR_INLINE Vec weight_of(Vec logit, Vec factor, Vec minus_base) {
    const Vec exponent = fma(logit, factor, minus_base);
    return VALUES == 1 ? exp2(exponent) : exp2_rough(exponent);
}

// What is summed up shrinks by this when weights come to be measured from `now` instead of `before`.
DSMR_INLINE float shrinkage(float before, float now) { return before < now ? __builtin_exp2f(before - now) : 1.0f; }
DSMR_INLINE Vec shrinkages(Vec before, Vec now) {
    return select_less(before, now, exp2(sub(before, now)), broadcast(1.0f)); // exp2(0) is not quite 1
}

// The end of it: outputs are sums times this. Of a row that sees nothing, zeros.
DSMR_INLINE float inverse(float total) { return total == 0 ? 0.0f : 1.0f / total; }
DSMR_INLINE float lse_of(float highest, float total) {
    return total == 0 ? HIDDEN : (highest + __builtin_log2f(total)) * LN2;
}

// One row's sums over some of its keys.
struct Part {
    const float* out; // [dim]
    float highest, total;
};

// The sums of some rows: [rows][padded dim], and two numbers a row.
struct RowSums {
    float *out, *highest, *total;

    static int64_t floats(int64_t rows, int64_t dim) { return rows * (padded(dim) + 2); }
    static RowSums at(float* data, int64_t rows, int64_t dim) {
        return {data, data + rows * padded(dim), data + rows * (padded(dim) + 1)};
    }
    void clear(int64_t rows, int64_t dim) const {
        std::memset(out, 0, rows * padded(dim) * sizeof(float));
        for (int64_t r = 0; r < rows; ++r) highest[r] = HIDDEN, total[r] = 0.0f;
    }
    RowSums from_row(int64_t r, int64_t dim) const { return {out + r * padded(dim), highest + r, total + r}; }
    Part part(int64_t r, int64_t dim) const { return {out + r * padded(dim), highest[r], total[r]}; }
};

// A row's parts part(0) ... part(count - 1), joined in this order: out [dim] becomes its output. Returns the lse.
template <class GetPart>
DSMR_INLINE float merge_parts(int64_t count, int64_t dim, float* out, const GetPart& part) {
    float highest = HIDDEN, total = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float now = part(i).highest;
        highest = now > highest ? now : highest;
    }
    for (int64_t d = 0; d < dim; ++d) out[d] = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const Part sums = part(i);
        const float shrink = shrinkage(sums.highest, highest);
        total += sums.total * shrink;
        for (int64_t d = 0; d < dim; ++d) out[d] += sums.out[d] * shrink;
    }
    const float factor = inverse(total);
    for (int64_t d = 0; d < dim; ++d) out[d] *= factor;
    return lse_of(highest, total);
}

} // namespace dsmr::DSMR_ISA

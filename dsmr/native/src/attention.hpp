// One token's attention over a chunk of a ring: rows of keys and values are read where they lie, once, in order.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "simd.hpp"

namespace dsmr::DSMR_ISA {

constexpr int KEYS = 64;   // whose logits are kept at a time; a multiple of 4 and of WIDTH
constexpr int COLUMNS = 4; // Vecs of the output that are summed at a time

// What some keys contribute to query heads: sums of the weights 2^(logit - highest), and of weight * v.
struct Partial {
    float *highest, *total, *out;  // [rows], [rows], [rows, dim]
};

// Consecutive slots of one lane and KV head; scales for quantised types.
template <class T>
struct Keys {
    const T *k, *v;                                      // [count, dim]
    const float *k_scale = nullptr, *v_scale = nullptr;  // [count]
    int64_t count = 0;
};

// logits[i] = q . k[i] for four rows.
template <class T>
DSMR_INLINE void four_logits(const T* k, const float* q, int dim, float* logits) {
    Vec sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int d = 0;
    for (; d + WIDTH <= dim; d += WIDTH)
        for (int i = 0; i < 4; ++i) sums[i] = fma(load(k + i * dim + d), load(q + d), sums[i]);
    sum4(sums[0], sums[1], sums[2], sums[3], logits);
    for (; d < dim; ++d)
        for (int i = 0; i < 4; ++i) logits[i] += to_float(k[i * dim + d]) * q[d];
}

template <class T>
DSMR_INLINE float one_logit(const T* k, const float* q, int dim) {
    Vec products = broadcast(0);
    int d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) products = fma(load(k + d), load(q + d), products);
    float logit = sum(products);
    for (; d < dim; ++d) logit += to_float(k[d]) * q[d];
    return logit;
}

// out = shrink * out + sum of weights[i] * v[i], for `columns` Vecs of each row.
template <class T, int columns>
DSMR_INLINE void add_values(const T* v, int count, int dim, const float* weights, Vec shrink, float* out) {
    Vec sums[columns], others[columns];
    for (int c = 0; c < columns; ++c) sums[c] = mul(load(out + c * WIDTH), shrink), others[c] = broadcast(0);
    int i = 0;
    for (; i + 2 <= count; i += 2)
        for (int c = 0; c < columns; ++c) {
            sums[c] = fma(broadcast(weights[i]), load(v + i * dim + c * WIDTH), sums[c]);
            others[c] = fma(broadcast(weights[i + 1]), load(v + (i + 1) * dim + c * WIDTH), others[c]);
        }
    if (i < count)
        for (int c = 0; c < columns; ++c) sums[c] = fma(broadcast(weights[i]), load(v + i * dim + c * WIDTH), sums[c]);
    for (int c = 0; c < columns; ++c) store(out + c * WIDTH, add(sums[c], others[c]));
}

template <class T>
DSMR_INLINE void add_all_values(const T* v, int count, int dim, const float* weights, float shrink, float* out) {
    int d = 0;
    for (; d + COLUMNS * WIDTH <= dim; d += COLUMNS * WIDTH)
        add_values<T, COLUMNS>(v + d, count, dim, weights, broadcast(shrink), out + d);
    for (; d + WIDTH <= dim; d += WIDTH) add_values<T, 1>(v + d, count, dim, weights, broadcast(shrink), out + d);
    for (; d < dim; ++d) {
        out[d] *= shrink;
        for (int i = 0; i < count; ++i) out[d] += weights[i] * to_float(v[i * dim + d]);
    }
}

// Logits become weights 2^(logit - highest); returns their sum. `logits` holds KEYS of them, -inf behind the real ones.
DSMR_INLINE float exponentials(float* logits, float highest) {
    Vec total = broadcast(0);
    for (int i = 0; i < KEYS; i += WIDTH) {
        const Vec weight = exp2(sub(load(logits + i), broadcast(highest)));
        store(logits + i, weight);
        total = add(total, weight);
    }
    return sum(total);
}

DSMR_INLINE float highest_of(const float* logits) {
    Vec highest = load(logits);
    for (int i = WIDTH; i < KEYS; i += WIDTH) highest = max(highest, load(logits + i));
    return largest(highest);
}

// Online softmax (Milakov and Gimelshein 2018) of `rows` queries [rows, dim], scaled for base 2.
template <class T>
static void attend(const Keys<T>& keys, const float* q, int rows, int dim, const Partial& partial) {
    alignas(64) float logits[KEYS];
    std::fill(partial.highest, partial.highest + rows, -FLT_MAX);
    std::fill(partial.total, partial.total + rows, 0.0f);
    std::fill(partial.out, partial.out + rows * dim, 0.0f);
    for (int64_t first = 0; first < keys.count; first += KEYS) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, keys.count - first));
        const T *k = keys.k + first * dim, *v = keys.v + first * dim;
        for (int row = 0; row < rows; ++row) {
            int i = 0;
            for (; i + 4 <= count; i += 4) four_logits(k + i * dim, q + row * dim, dim, logits + i);
            for (; i < count; ++i) logits[i] = one_logit(k + i * dim, q + row * dim, dim);
            if (keys.k_scale)
                for (i = 0; i < count; ++i) logits[i] *= keys.k_scale[first + i];
            std::fill(logits + count, logits + KEYS, -INFINITY);
            const float before = partial.highest[row], highest = std::max(before, highest_of(logits));
            const float shrink = ::exp2f(before - highest);
            partial.highest[row] = highest;
            partial.total[row] = partial.total[row] * shrink + exponentials(logits, highest);
            if (keys.v_scale)
                for (i = 0; i < count; ++i) logits[i] *= keys.v_scale[first + i];
            add_all_values(v, count, dim, logits, shrink, partial.out + row * dim);
        }
    }
}

} // namespace dsmr::DSMR_ISA

// LayerNorm, GELU and positions: what a step does to each vector. Sizes are multiples of PAD; what fills up is zero.
#pragma once

#include <algorithm>
#include <cmath>

#include "softmax.hpp"
#include "step.hpp"

namespace dsmr::DSMR_ISA {

template <class Term>
DSMR_INLINE float sum_over(int64_t size, const Term& term) {
    Vec total = broadcast(0);
    for (int64_t i = 0; i < size; i += WIDTH) total = add(total, term(i));
    return sum(total);
}

// Of `size` numbers, filled up to `padded`; y is filled up with zeros because weight and bias are.
static void layer_norm(const float* x, const Norm& norm, float epsilon, int64_t size, int64_t padded, float* y) {
    const Vec mean = broadcast(sum_over(padded, [&](int64_t i) { return load(x + i); }) / size);
    for (int64_t i = 0; i < padded; i += WIDTH) store(y + i, sub(load(x + i), mean));
    std::fill(y + size, y + padded, 0.0f);
    const float variance = sum_over(padded, [&](int64_t i) { return mul(load(y + i), load(y + i)); }) / size;
    const Vec scale = broadcast(1 / std::sqrt(variance + epsilon));
    for (int64_t i = 0; i < padded; i += WIDTH)
        store(y + i, fma(mul(load(y + i), scale), load(norm.weight + i), load(norm.bias + i)));
}

// Zhang and Sennrich (2019): a head of a given root mean square.
DSMR_INLINE void normalise_head(const float* x, int dim, float size, float epsilon, float* y) {
    float total = 0;
    for (int i = 0; i < dim; ++i) total += x[i] * x[i];
    const float scale = size / std::sqrt(total / dim + epsilon);
    for (int i = 0; i < dim; ++i) y[i] = x[i] * scale;
}

// Hendrycks and Gimpel (2016) with tanh: x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is
// x / (1 + exp(-2 u)).
DSMR_INLINE Vec gelu(Vec x) {
    constexpr float SLOPE = -2 * 0.79788456f * LOG2E;
    const Vec cubic = fma(mul(x, x), broadcast(0.044715f * SLOPE), broadcast(SLOPE));
    const Vec exponent = mul(x, cubic);
    const Vec bounded = select_less(exponent, broadcast(126), exponent, broadcast(126));
    return div(x, add(broadcast(1), exp2(bounded)));
}

// x = gelu(x + bias), for any number of numbers.
static void bias_gelu(float* x, const float* bias, int64_t size) {
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) store(x + i, gelu(add(load(x + i), load(bias + i))));
    float rest[WIDTH] = {};
    const int64_t left = size - i;
    for (int64_t j = 0; j < left; ++j) rest[j] = x[i + j] + bias[i + j];
    store(rest, gelu(load(rest)));
    std::copy(rest, rest + left, x + i);
}

// Su et al. (2021), "RoFormer": the halves of a head, turned by each pair's angle, and scaled.
DSMR_INLINE void rotate(const float* x, const float* cosine, const float* sine, int dim, float scale, float* y) {
    const int half = dim / 2;
    for (int i = 0; i < half; ++i) {
        const float first = x[i], second = x[half + i];
        y[i] = (first * cosine[i] - second * sine[i]) * scale;
        y[half + i] = (first * sine[i] + second * cosine[i]) * scale;
    }
}

} // namespace dsmr::DSMR_ISA

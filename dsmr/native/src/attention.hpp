// One token's attention over the visible runs of a ring, cut into chunks that can be computed anywhere, in any order.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "simd.hpp"
#include "step.hpp"

namespace dsmr::DSMR_ISA {

constexpr int KEYS = 64;    // whose logits are kept at a time

// What some keys contribute to one query head: sum of weights 2^(logit - highest) and of weight * v.
struct Partial {
  float *highest, *total, *out;  // [rows], [rows], [rows, dim]
};

// Keys of one KV head of one lane, row after row; scales for quantised types.
template <class T>
struct Keys {
  const T *k, *v;
  const float *k_scale, *v_scale;
  int64_t count;
};

// Online softmax (Milakov and Gimelshein 2018) of `rows` queries [rows, dim], scaled for base 2.
template <class T>
static void attend(const Keys<T>& keys, const float* q, int rows, int dim, const Partial& partial) {
  alignas(64) float weights[KEYS];
  for (int row = 0; row < rows; ++row) {
    float highest = -FLT_MAX, total = 0;
    float* out = partial.out + row * dim;
    std::fill(out, out + dim, 0.0f);
    for (int64_t first = 0; first < keys.count; first += KEYS) {
      const int count = static_cast<int>(std::min<int64_t>(KEYS, keys.count - first));
      const float before = highest;
      for (int key = 0; key < count; ++key) {
        const T* k = keys.k + (first + key) * dim;
        Vec products = broadcast(0);
        int d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) products = fma(load(k + d), load(q + row * dim + d), products);
        float logit = sum(products);
        for (; d < dim; ++d) logit += to_float(k[d]) * q[row * dim + d];
        weights[key] = keys.k_scale ? logit * keys.k_scale[first + key] : logit;
        highest = std::max(highest, weights[key]);
      }
      const float shrink = ::exp2f(before - highest);
      total *= shrink;
      for (int d = 0; d < dim; ++d) out[d] *= shrink;
      for (int key = 0; key < count; ++key) {
        float weight = ::exp2f(weights[key] - highest);
        total += weight;
        if (keys.v_scale) weight *= keys.v_scale[first + key];
        const T* v = keys.v + (first + key) * dim;
        int d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) store(out + d, fma(broadcast(weight), load(v + d), load(out + d)));
        for (; d < dim; ++d) out[d] += weight * to_float(v[d]);
      }
    }
    partial.highest[row] = highest;
    partial.total[row] = total;
  }
}

}  // namespace dsmr::DSMR_ISA

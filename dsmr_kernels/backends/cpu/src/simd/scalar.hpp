// Vectors of one float: the specification that the other instruction sets implement, and what runs where none fits.
//
// Each header of this folder defines these names in namespace dsmr::DSMR_ISA; kernels know nothing else of a machine.
#pragma once

#include <cmath>

#include "../types.hpp"

namespace dsmr::DSMR_ISA {

using Vec = float;
constexpr int WIDTH = 1;          // floats in a Vec
constexpr int ACCUMULATORS = 8;   // Vecs that a micro-kernel may keep in registers as sums
constexpr int KERNEL_VECS = 4;    // Vecs side by side in the widest micro-kernel
constexpr bool HAS_PAIRS = false; // is there a dot product of bf16 pairs?

// WIDTH elements from memory, converted to float. No alignment is assumed.
template <class T>
DSMR_INLINE Vec load(const T* p) {
    return to_float(*p);
}
// WIDTH elements to memory; bf16 and fp16 round to nearest, ties to even.
template <class T>
DSMR_INLINE void store(T* p, Vec a) {
    from_float(a, p);
}
DSMR_INLINE Vec broadcast(float x) { return x; }
DSMR_INLINE Vec add(Vec a, Vec b) { return a + b; }
DSMR_INLINE Vec sub(Vec a, Vec b) { return a - b; }
DSMR_INLINE Vec mul(Vec a, Vec b) { return a * b; }
DSMR_INLINE Vec div(Vec a, Vec b) { return a / b; }
DSMR_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; } // a b + c, rounded once where the machine can
DSMR_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
DSMR_INLINE Vec select_less(Vec a, Vec b, Vec yes, Vec no) { return a < b ? yes : no; }
DSMR_INLINE bool any_greater(Vec a, Vec b) { return a > b; }
DSMR_INLINE float sum(Vec a) { return a; }
DSMR_INLINE float largest(Vec a) { return a; }
// out[i] = sum of the i-th vector
DSMR_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}
// a[0], b[0], a[1], b[1], ... in two vectors; words of any meaning
DSMR_INLINE void zip(Vec a, Vec b, Vec& first, Vec& second) { first = a, second = b; }
// 2^x for x <= 127, to 2 units in the last place; exactly 0 for -inf and from SMALLEST_EXPONENT down.
DSMR_INLINE Vec exp2(Vec x) { return x <= SMALLEST_EXPONENT ? 0.0f : ::exp2f(x); }
// The same to a relative error of 1e-4, for results that will be rounded to bf16.
DSMR_INLINE Vec exp2_rough(Vec x) { return exp2(x); }

} // namespace dsmr::DSMR_ISA

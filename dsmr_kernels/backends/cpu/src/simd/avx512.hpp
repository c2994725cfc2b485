// AVX-512 (F, BW, DQ, VL): 16 floats, 32 registers. Meaning of each name: scalar.hpp.
#pragma once

#include <immintrin.h>

#include "../types.hpp"

namespace dsmr::DSMR_ISA {

using Vec = __m512;
constexpr int WIDTH = 16;
constexpr int ACCUMULATORS = 24;
constexpr int KERNEL_VECS = 4;

DSMR_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
DSMR_INLINE Vec load(const bf16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
DSMR_INLINE Vec load(const fp16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
DSMR_INLINE Vec load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// As fp16 the same bits, shifted, mean 2^-8 of the value; fp16 subnormals convert exactly whatever the flush mode.
DSMR_INLINE Vec load(const fp8* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i wide = _mm256_cvtepi8_epi16(bytes); // the sign fills the upper half
    const __m256i sign = _mm256_and_si256(wide, _mm256_set1_epi16(int16_t(0x8000)));
    const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, _mm_set1_epi8(0x7f)), _mm_set1_epi8(0x7f));
    const Vec value = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, magnitude)), _mm512_set1_ps(256.0f));
    return _mm512_mask_blend_ps(nan, value, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}
DSMR_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
DSMR_INLINE __m512i bf16_bits(Vec a) { // in the low half of each 32-bit place
    const __m512i bits = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000)), 16);
}
DSMR_INLINE void store(bf16* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
DSMR_INLINE void store(fp16* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
DSMR_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
DSMR_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
DSMR_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
DSMR_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
DSMR_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
DSMR_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
DSMR_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
DSMR_INLINE Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
DSMR_INLINE bool any_greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
DSMR_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
DSMR_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a); }
DSMR_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const Vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const Vec abcd = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high)); // four parts of each sum
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
DSMR_INLINE void zip(Vec a, Vec b, Vec& first, Vec& second) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    first = _mm512_permutex2var_ps(a, low, b);
    second = _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
}
DSMR_INLINE Vec take_fraction(Vec& x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }
DSMR_INLINE Vec scale_by_power(Vec p, Vec x) { // scalef takes the floor; NaN stays
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, broadcast(SMALLEST_EXPONENT), _CMP_NLE_UQ), p, x);
}
#ifndef __AVX512BF16__
constexpr bool HAS_PAIRS = false;
#else
// bf16 pairs: each 32-bit place holds two values, the first in the low half.
constexpr bool HAS_PAIRS = true;
using Pairs = __m512i;
DSMR_INLINE Pairs load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
DSMR_INLINE Pairs broadcast_pairs(uint32_t pair) { return _mm512_set1_epi32(int32_t(pair)); }
// Of 32 halves in a and 32 in b: place i gets half first + i of a (low) and of b (high).
DSMR_INLINE Pairs zip_halves(__m512i a, __m512i b, int first) {
    const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi32(place, _mm512_set1_epi32(first));
    const __m512i high = _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16);
    return _mm512_permutex2var_epi16(a, _mm512_or_si512(low, high), b);
}
// (low[i], high[i]) rounded to bf16, the pair of place i; NaN stays NaN.
DSMR_INLINE Pairs make_pairs(Vec low, Vec high) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low); // all of low, then all of high
    const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i order = _mm512_or_si512(place, _mm512_slli_epi32(_mm512_add_epi32(place, _mm512_set1_epi32(16)), 16));
    return _mm512_permutexvar_epi16(order, halves);
}
// Two rows of bf16 side by side: out[d] = (even[d], odd[d]) for 2 WIDTH elements.
DSMR_INLINE void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* out) {
    const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    _mm512_storeu_si512(out, zip_halves(a, b, 0));
    _mm512_storeu_si512(out + WIDTH, zip_halves(a, b, WIDTH));
}
// Numbers [k][ROWS] of 32 / ROWS keys, rounded to bf16: for two keys at a time, each row's two side by side.
template <int ROWS>
DSMR_INLINE Pairs pair_rows(Vec low, Vec high) {
    alignas(64) static constexpr auto order = [] {
        struct { uint16_t from[32]; } table{};
        for (int i = 0; i < 32; ++i) table.from[i] = uint16_t((i / (2 * ROWS) * 2 + i % 2) * ROWS + i / 2 % ROWS);
        return table;
    }();
    return _mm512_permutexvar_epi16(_mm512_load_si512(order.from), (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
DSMR_INLINE void store_pairs(uint32_t* p, Pairs a) { _mm512_storeu_si512(p, a); }
// sums[i] + a[i].low b[i].low + a[i].high b[i].high
DSMR_INLINE Vec dot(Vec sums, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b); }
#endif

#ifdef __AVX512VNNI__
// Dot products of bytes: 64 bytes or 16 integers a vector, in four parts of 16 bytes that most shuffles do not leave.
using Bytes = __m512i;
typedef int32_t Ints __attribute__((vector_size(64))); // GCC copies sums of type __m512i with every dot product
DSMR_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
DSMR_INLINE void store_bytes(void* p, Bytes a) { _mm512_storeu_si512(p, a); }
DSMR_INLINE Bytes plus_128(Bytes a) { return _mm512_xor_si512(a, _mm512_set1_epi8(int8_t(0x80))); } // signed to unsigned
DSMR_INLINE Ints broadcast_int(int32_t x) { return (Ints)_mm512_set1_epi32(x); }
DSMR_INLINE Ints add(Ints a, Ints b) { return a + b; }
DSMR_INLINE Ints times_256(Ints a) { return a << 8; }
// sums[i] + a[4i] b[4i] + ... + a[4i + 3] b[4i + 3], exactly.
DSMR_INLINE Ints dot_bytes(Ints sums, Bytes unsigned_a, Bytes signed_b) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, unsigned_a, signed_b);
}
DSMR_INLINE Vec to_floats(Ints a) { return _mm512_cvtepi32_ps((__m512i)a); }
DSMR_INLINE Ints to_nearest(Vec a) { return (Ints)_mm512_cvtps_epi32(a); }
// Of quads, which are four bytes: part p of x[j] is quad 4p + j of a, four times.
DSMR_INLINE void repeat_quads(Bytes a, Bytes (&x)[4]) {
    x[0] = _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0x00)), x[1] = _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0x55));
    x[2] = _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0xaa)), x[3] = _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0xff));
}
// Four rows of 64 bytes: part p of x[j] becomes (quad 4p + j of row 0, that of row 1, ...), quads being four bytes.
DSMR_INLINE void transpose_quads(Bytes (&x)[4]) {
    const Bytes a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const Bytes c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c), x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d), x[3] = _mm512_unpackhi_epi64(b, d);
}
// Four rows of 64 bytes: integer i of part p of x[j] becomes (byte 16p + 4j + i of row 0, that of row 1, ...).
DSMR_INLINE void interleave_bytes(Bytes (&x)[4]) {
    const Bytes a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
    const Bytes c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi16(a, c), x[1] = _mm512_unpackhi_epi16(a, c);
    x[2] = _mm512_unpacklo_epi16(b, d), x[3] = _mm512_unpackhi_epi16(b, d);
}
// Part p of x[j] becomes part j of x[p].
DSMR_INLINE void transpose_parts(Vec (&x)[4]) {
    const Vec a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
    const Vec c = _mm512_shuffle_f32x4(x[0], x[1], 0xee), d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(a, b, 0x88), x[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    x[2] = _mm512_shuffle_f32x4(c, d, 0x88), x[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}
// Part p of the result: the sum of the four parts of the p-th vector.
DSMR_INLINE Vec sum_parts(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const Vec cd = add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    return add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
// The first `count` of WIDTH numbers, and zeros; what is behind them is not touched.
DSMR_INLINE Vec load_some(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(count >= WIDTH ? 0xffff : count > 0 ? (1u << count) - 1 : 0, p);
}
// The first ROWS numbers, by no masked store, whose data a load would have to wait for.
template <int ROWS>
DSMR_INLINE void store_first(float* p, Vec a) {
    const __m128 first = _mm512_castps512_ps128(a);
    if (ROWS == 1) _mm_store_ss(p, first);
    else if (ROWS == 2) _mm_storel_pi(reinterpret_cast<__m64*>(p), first);
    else _mm_storeu_ps(p, first);
}
// Number i comes from from[i].
DSMR_INLINE Vec permuted(Vec a, const int32_t* from) { return _mm512_permutexvar_ps(_mm512_loadu_si512(from), a); }
// The bits of floats, which order as unsigned integers, with negative numbers and NaN on top.
DSMR_INLINE Bytes bits_of(Vec a) { return _mm512_castps_si512(a); }
DSMR_INLINE Vec as_floats(Bytes bits) { return _mm512_castsi512_ps(bits); }
DSMR_INLINE Bytes larger_bits(Bytes a, Bytes b) { return _mm512_max_epu32(a, b); }
// Of numbers [key][ROWS]: the largest of all keys', in every place of a row.
template <int ROWS>
DSMR_INLINE Bytes largest_bits(Bytes a) {
    if (ROWS <= 1) a = larger_bits(a, _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0xb1)));
    if (ROWS <= 2) a = larger_bits(a, _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0x4e)));
    a = larger_bits(a, _mm512_shuffle_i64x2(a, a, 0xb1));
    return larger_bits(a, _mm512_shuffle_i64x2(a, a, 0x4e));
}
// Is every number 0 or from `low` to `high`, which are positive?
DSMR_INLINE bool are_within(Bytes bits, float low, float high) {
    const __mmask16 some = _mm512_test_epi32_mask(bits, bits);
    const __mmask16 small = _mm512_cmplt_epu32_mask(bits, _mm512_set1_epi32(bit_cast<int32_t>(low)));
    return !((some & small) | _mm512_cmpgt_epu32_mask(bits, _mm512_set1_epi32(bit_cast<int32_t>(high))));
}
// Of every part's four integers: their lowest bytes, those above them, ...
DSMR_INLINE Bytes bytes_by_place(Ints a) {
    const __m128i from = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_shuffle_epi8((__m512i)a, _mm512_broadcast_i32x4(from));
}
// Asks for what lies `bytes` further on, be it there or not.
DSMR_INLINE void fetch_ahead(const void* p, int64_t bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)), _MM_HINT_T1);
}
#endif

} // namespace dsmr::DSMR_ISA

#include "exp2.hpp"

// Element types as they lie in memory, and their scalar conversions: C++17 has none of these types.
//
// Every function of a kernel header is `DSMR_INLINE`: internal linkage, because the same header is compiled once per
// instruction set, and a linker that merged those copies could hand AVX-512 code to a machine that has none.
#pragma once

#include <cstdint>
#include <cstring>

#define DSMR_INLINE static inline __attribute__((always_inline))

namespace dsmr {

// Powers of two from 2^SMALLEST_EXPONENT down are taken for 0. As weights they are nothing beside the largest, which is
// 1, and with them come denormal products, which keep a processor forty times as long as others.
constexpr float SMALLEST_EXPONENT = -80.0f;

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};
struct fp8 { // e4m3fn: 4 bits of exponent (bias 7), 3 of mantissa, no infinities, 0x7f is NaN
    uint8_t bits;
};

template <class To, class From>
DSMR_INLINE To bit_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

DSMR_INLINE float to_float(float x) { return x; }
DSMR_INLINE float to_float(int8_t x) { return x; }
DSMR_INLINE float to_float(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

DSMR_INLINE float to_float(fp16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude < 0x0400) { // zero or subnormal: an integer multiple of 2^-24
        const float value = float(magnitude) * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t exponent_shift = magnitude < 0x7c00 ? 127 - 15 : 255 - 31; // infinities and NaN stay what they are
    return bit_cast<float>(sign | ((magnitude << 13) + (exponent_shift << 23)));
}

DSMR_INLINE float to_float(fp8 x) {
    const uint32_t sign = uint32_t(x.bits & 0x80) << 24, magnitude = x.bits & 0x7f;
    if (magnitude == 0x7f) return bit_cast<float>(sign | 0x7fc00000u);
    if (magnitude < 0x08) { // zero or subnormal: an integer multiple of 2^-9
        const float value = float(magnitude) * 0x1p-9f;
        return sign ? -value : value;
    }
    return bit_cast<float>(sign | ((magnitude << 20) + (uint32_t(127 - 7) << 23)));
}

// Conversions to fewer bits round to nearest, ties to even.

DSMR_INLINE void from_float(float x, float* y) { *y = x; }

DSMR_INLINE void from_float(float x, bf16* y) {
    const uint32_t bits = bit_cast<uint32_t>(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    y->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

DSMR_INLINE void from_float(float x, fp16* y) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;
    } else if (magnitude >= 0x477ff000) { // 65520 and more round to infinity
        half = 0x7c00;
    } else if (magnitude < 0x38800000) { // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded
        half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude - (uint32_t(127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    }
    y->bits = uint16_t(sign | half);
}

// Branch-free, so that a loop of it vectorises. What is beyond 448 becomes 448, as in PyTorch.
DSMR_INLINE void from_float(float x, fp8* y) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 24) & 0x80, magnitude = bits & 0x7fffffff;
    // Below 2^-6: adding 2^14 leaves multiples of 2^-9 in the low bits, rounded by the addition itself.
    const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0x1p14f) - bit_cast<uint32_t>(0x1p14f);
    const uint32_t normal = (magnitude - (uint32_t(127 - 7) << 23) + 0x7ffff + ((magnitude >> 20) & 1)) >> 20;
    const uint32_t rounded = magnitude < 0x3c800000 ? small : normal, finite = rounded > 0x7e ? 0x7e : rounded;
    y->bits = uint8_t(sign | (magnitude > 0x7f800000 ? 0x7f : finite));
}

} // namespace dsmr

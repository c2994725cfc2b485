// NEON of 64-bit ARM: 4 floats, 32 registers. Meaning of each name: scalar.hpp.
#pragma once

#include <arm_neon.h>

#include "../types.hpp"

namespace dsmr::DSMR_ISA {

using Vec = float32x4_t;
constexpr int WIDTH = 4;
constexpr int ACCUMULATORS = 20; // 24 spill: the broadcast scalars of a product want registers of their own
constexpr int KERNEL_VECS = 4;
constexpr bool HAS_PAIRS = false;

DSMR_INLINE Vec load(const float* p) { return vld1q_f32(p); }
DSMR_INLINE Vec load(const bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}
DSMR_INLINE Vec load(const fp16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
DSMR_INLINE int8x8_t load_4_bytes(const void* p) {
    uint32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return vreinterpret_s8_u32(vdup_n_u32(bytes));
}
DSMR_INLINE Vec load(const int8_t* p) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(load_4_bytes(p))))); }
// As fp16 the same bits, shifted, mean 2^-8 of the value; fp16 subnormals convert exactly whatever the flush mode.
DSMR_INLINE Vec load(const fp8* p) {
    const uint16x4_t wide = vreinterpret_u16_s16(vget_low_s16(vmovl_s8(load_4_bytes(p))));
    const uint16x4_t magnitude = vand_u16(wide, vdup_n_u16(0x7f)), sign = vand_u16(wide, vdup_n_u16(0x8000));
    const uint16x4_t nan = vshr_n_u16(vceq_u16(magnitude, vdup_n_u16(0x7f)), 1); // the fp16 NaN 0x7fff
    const uint16x4_t half = vorr_u16(vorr_u16(sign, nan), vshl_n_u16(magnitude, 7));
    return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}
DSMR_INLINE void store(float* p, Vec a) { vst1q_f32(p, a); }
DSMR_INLINE void store(bf16* p, Vec a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16));
}
DSMR_INLINE void store(fp16* p, Vec a) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
DSMR_INLINE Vec broadcast(float x) { return vdupq_n_f32(x); }
DSMR_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
DSMR_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
DSMR_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
DSMR_INLINE Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
DSMR_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
DSMR_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
DSMR_INLINE Vec select_less(Vec a, Vec b, Vec yes, Vec no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
DSMR_INLINE bool any_greater(Vec a, Vec b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
DSMR_INLINE float sum(Vec a) { return vaddvq_f32(a); }
DSMR_INLINE float largest(Vec a) { return vmaxvq_f32(a); }
DSMR_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
DSMR_INLINE void zip(Vec a, Vec b, Vec& first, Vec& second) { first = vzip1q_f32(a, b), second = vzip2q_f32(a, b); }
DSMR_INLINE Vec scale_by_power(Vec p, Vec floor) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(floor), vdupq_n_s32(127));
    const uint32x4_t power = vbicq_u32(vreinterpretq_u32_s32(vshlq_n_s32(exponent, 23)), vcleq_f32(floor, broadcast(SMALLEST_EXPONENT)));
    return vmulq_f32(p, vreinterpretq_f32_u32(power));
}
DSMR_INLINE Vec take_fraction(Vec& x) {
    const Vec bounded = vmaxq_f32(x, broadcast(SMALLEST_EXPONENT)); // keeps NaN
    x = vrndmq_f32(bounded);
    return vsubq_f32(bounded, x);
}

} // namespace dsmr::DSMR_ISA

#include "exp2.hpp"

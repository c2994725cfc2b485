// Appending a segment to the ring: copied, or quantised exactly as dsmr_kernels/storage.py does it, bit for bit.
#pragma once

#include "tile.hpp"

namespace dsmr::DSMR_ISA {

DSMR_INLINE int8_t quantised(float x, int8_t) { return int8_t(__builtin_rintf(x)); }
DSMR_INLINE fp8 quantised(float x, fp8) {
    fp8 y;
    from_float(x, &y);
    return y;
}

// The largest magnitude of a row. As integers, magnitudes order like floats, with NaN above all: no special case.
DSMR_INLINE float largest_magnitude(const float* row, int64_t dim) {
    int32_t largest = 0;
    for (int64_t d = 0; d < dim; ++d) {
        const int32_t bits = bit_cast<int32_t>(row[d]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return bit_cast<float>(largest);
}

DSMR_INLINE float largest_value(int8_t) { return 127.0f; }
DSMR_INLINE float largest_value(fp8) { return 448.0f; }

// row / scale, rounded to nearest even, where scale = largest magnitude / largest value of the type; returns the scale.
template <class T>
DSMR_INLINE float quantise_row(const float* row, int64_t dim, T* to) {
    const float scale = largest_magnitude(row, dim) / largest_value(T{}), divisor = scale > 0 ? scale : 1.0f;
    for (int64_t d = 0; d < dim; ++d) to[d] = quantised(row[d] / divisor, T{});
    return scale;
}

DSMR_INLINE void write_slot(const DsmrCall& call, const DsmrTensor& from, const DsmrRing& ring, int64_t lane,
                            int64_t kv_head, int64_t token, int64_t slot) {
    const void* const source = segment_rows(call, from, lane, kv_head, token).data;
    void* const target = const_cast<void*>(ring_rows(call, ring, lane, kv_head, slot).data);
    if (!ring.scale) {
        std::memcpy(target, source, call.dim * element_bytes(call.type));
        return;
    }
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)];
    with_type(source, call.type, [&](auto* p) { copy_row(p, call.dim, 1.0f, row, padded(call.dim)); });
    float& scale = ring.scale[lane * ring.scale_lane + kv_head * ring.scale_head + slot];
    scale = call.ring_type == DSMR_INT8 ? quantise_row(row, call.dim, static_cast<int8_t*>(target))
                                        : quantise_row(row, call.dim, static_cast<fp8*>(target));
}

DSMR_INLINE void append_head(const DsmrCall& call, const Lane& lane, int64_t kv_head) {
    constexpr int64_t AHEAD = 16; // tokens
    const Rows keys = segment_rows(call, call.k, lane.index, kv_head, 0);
    const Rows values = segment_rows(call, call.v, lane.index, kv_head, 0);
    for_each_written(call, lane, [&](int64_t token, int64_t slot) {
        fetch_row(keys, token + AHEAD, call.dim);
        fetch_row(values, token + AHEAD, call.dim);
        write_slot(call, call.k, call.ring_k, lane.index, kv_head, token, slot);
        write_slot(call, call.v, call.ring_v, lane.index, kv_head, token, slot);
    });
}

} // namespace dsmr::DSMR_ISA

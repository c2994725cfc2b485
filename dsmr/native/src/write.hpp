// Writing one token's key or value into a slot, as `dsmr_kernels.storage.quantise` rounds it.
#pragma once

#include <algorithm>
#include <cmath>

#include "step.hpp"
#include "types.hpp"

namespace dsmr::DSMR_ISA {

DSMR_INLINE void store_rounded(float x, int8_t* y) { *y = static_cast<int8_t>(std::nearbyint(x)); }
template <class T>
DSMR_INLINE void store_rounded(float x, T* y) {
    from_float(x, y);
}

// Row `row` of a ring's keys or values; `largest` is the type's largest magnitude, and `scales` null if it needs none.
template <class T>
DSMR_INLINE void write_row(void* rows, float* scales, float largest, int64_t row, const float* x, int dim) {
    float divisor = 1;
    if (scales) {
        float absmax = 0;
        for (int d = 0; d < dim; ++d) absmax = std::max(absmax, std::abs(x[d]));
        const float scale = absmax / largest;
        scales[row] = scale;
        if (scale > 0) divisor = scale;
    }
    T* const y = static_cast<T*>(rows) + row * dim;
    for (int d = 0; d < dim; ++d) store_rounded(x[d] / divisor, y + d);
}

static void write_row(Type type, void* rows, float* scales, int64_t row, const float* x, int dim) {
    switch (type) {
        case Type::float32: return write_row<float>(rows, nullptr, 0, row, x, dim);
        case Type::bfloat16: return write_row<bf16>(rows, nullptr, 0, row, x, dim);
        case Type::float16: return write_row<fp16>(rows, nullptr, 0, row, x, dim);
        case Type::int8: return write_row<int8_t>(rows, scales, 127, row, x, dim);
        case Type::float8_e4m3: return write_row<fp8>(rows, scales, 448, row, x, dim);
    }
}

}  // namespace dsmr::DSMR_ISA

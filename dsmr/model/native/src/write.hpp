// Writing one token's key or value into a slot, rounded as the attention kernels round it.
#pragma once

#include "append.hpp"
#include "step.hpp"

namespace dsmr::DSMR_ISA {

template <class T>
DSMR_INLINE void write_row(const float* x, int dim, T* row) {
    for (int d = 0; d < dim; ++d) from_float(x[d], row + d);
}

// Row `row` of a ring's keys or values; `scales` is null unless the type is quantised.
static void write_slot(Type type, void* rows, float* scales, int64_t row, const float* x, int dim) {
    const int64_t at = row * dim;
    switch (type) {
        case Type::float32: return write_row(x, dim, static_cast<float*>(rows) + at);
        case Type::bfloat16: return write_row(x, dim, static_cast<bf16*>(rows) + at);
        case Type::float16: return write_row(x, dim, static_cast<fp16*>(rows) + at);
        case Type::int8: scales[row] = quantise_row(x, dim, static_cast<int8_t*>(rows) + at); return;
        case Type::float8_e4m3: scales[row] = quantise_row(x, dim, static_cast<fp8*>(rows) + at); return;
    }
}

} // namespace dsmr::DSMR_ISA

// A layer's shifted keys: of the KV heads that are shifted, the last ones without positions, a slot for each position.
#pragma once

#include <algorithm>

#include "step.hpp"
#include "write.hpp"

namespace dsmr::DSMR_ISA {

class Tail {
public:
    Tail(const State& state, const Ring& ring, int kv_heads, int dim)
        : state(state), rows(ring.tail), kv_heads(kv_heads), dim(dim) {}

    // Are this KV head's keys shifted?
    bool shifts(int kv_head) const { return state.key_shift && state.key_shift[kv_head]; }

    // The key that stands at the lane's new token: an earlier token's, or zeros if its piece had not begun.
    const float* read(int lane, int kv_head, float* key) const {
        const int64_t shift = state.key_shift[kv_head];
        if (state.clock[state.lanes + lane] < shift)
            std::fill(key, key + dim, 0.0f);
        else
            read_slot(row(lane, kv_head, state.clock[lane] - shift), key);
        return key;
    }

    void write(int lane, int kv_head, const float* key) const {
        write_slot(state.tail_type, rows, nullptr, row(lane, kv_head, state.clock[lane]), key, dim);
    }

private:
    int64_t row(int lane, int kv_head, int64_t position) const {
        const auto shifted = [&](int heads) {
            return std::count_if(state.key_shift, state.key_shift + heads, [](int64_t shift) { return shift > 0; });
        };
        return (lane * shifted(kv_heads) + shifted(kv_head)) * state.tail_slots + position % state.tail_slots;
    }

    void read_slot(int64_t row, float* key) const {
        switch (state.tail_type) {
            case Type::bfloat16: return convert(static_cast<const bf16*>(rows) + row * dim, key);
            case Type::float16: return convert(static_cast<const fp16*>(rows) + row * dim, key);
            default: return convert(static_cast<const float*>(rows) + row * dim, key);
        }
    }

    template <class T>
    void convert(const T* from, float* key) const {
        for (int d = 0; d < dim; ++d) key[d] = to_float(from[d]);
    }

    const State& state;
    void* const rows;
    const int kv_heads, dim;
};

} // namespace dsmr::DSMR_ISA

// Decoding: the rows of a call that has few of them, memory and segment in parts that several cores share.
#pragma once

#include "decode_bytes.hpp"

namespace dsmr::DSMR_ISA {

constexpr int DECODE_ROWS = 8; // with more rows, tiles of 16 are faster

// One KV head's rows against the entries [first, last) of its visible memory and, if `with_segment`, the segment.
class DecodeHead {
public:
    DecodeHead(const DsmrCall& call, const Lane& lane, const Tile& tile, const RowSums& sums)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), sums_(sums), dim_(call.dim),
          in_pairs_(HAS_PAIRS && tile.rows > 1 && call.type == DSMR_BF16 && call.ring_type == DSMR_BF16 &&
                    dim_ % (2 * WIDTH) == 0) {
        for (int64_t r = 0; r < tile.rows; ++r) {
            const void* const row = row_data(tile, call, call.q, r);
            with_type(row, call.type, [&](auto* p) { // 1, -1 and 0 are exact factors
                const int64_t pitch = padded(dim_);
                if (in_pairs_) copy_row(p, dim_, rule_.sign, reinterpret_cast<bf16*>(queries_) + r * pitch, pitch);
                else copy_row(p, dim_, rule_.sign, queries_ + r * pitch, pitch);
            });
        }
#ifdef __AVX512VNNI__
        in_bytes_ = call.ring_type == DSMR_INT8 && byte_queries_.assign(queries_, tile.rows, dim_);
#endif
        sums.clear(tile.rows, dim_);
    }

    void run(int64_t first, int64_t last, bool with_segment) {
        const auto use = [&](const Block& block) { attend(block); };
        for_each_memory_block(call_, lane_, tile_, first, last, row_keys(call_.ring_type), use);
        if (with_segment) for_each_segment_block(call_, tile_, row_keys(call_.type), use);
    }

private:
    void attend(const Block& block) {
        const auto prepare = [&](auto rows, int64_t row, float* s) {
            if (is_plain(rule_, block)) return rule_.factor;
            return prepare_logits<decltype(rows)::value>(call_, lane_, tile_, rule_, block, row, s, nullptr);
        };
        with_type(block.keys.data, block.keys.type, [&](auto* keys) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(keys)>>;
            const KeyBlock<T> rows{keys, static_cast<const T*>(block.values.data), block.keys.stride,
                                   block.values.stride, block.key_scale, block.value_scale,
                                   block.count, block.masked};
#ifdef __AVX512BF16__
            if constexpr (std::is_same_v<T, bf16>) {
                const bf16* const q = reinterpret_cast<const bf16*>(queries_);
                if (in_pairs_) return attend_rows<AsPairs>(rows, q, tile_.rows, dim_, sums_, prepare);
            }
#endif
#ifdef __AVX512VNNI__
            if constexpr (std::is_same_v<T, int8_t>) {
                if (in_bytes_) return attend_rows<AsBytes>(rows, byte_queries_.row, tile_.rows, dim_, sums_, prepare);
            }
#endif
            attend_rows<AsFloats<T>>(rows, queries_, tile_.rows, dim_, sums_, prepare);
        });
    }

    const DsmrCall& call_;
    const Lane& lane_;
    const Tile& tile_;
    const LogitRule rule_;
    const RowSums sums_;
    const int64_t dim_;
    const bool in_pairs_; // for one row, reading takes longer than computing, and pairs read more slowly
    alignas(ALIGNMENT) float queries_[DECODE_ROWS * LARGEST_DIM]; // [rows][padded dim], bf16 if in pairs
#ifdef __AVX512VNNI__
    bool in_bytes_;
    ByteQueries byte_queries_;
#endif
};

// The sums of all parts of a head as output and lse.
DSMR_INLINE void finish_head(const DsmrCall& call, const Tile& tile, float* parts, int64_t count) {
    const int64_t size = RowSums::floats(DECODE_ROWS, call.dim);
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)];
    for (int64_t r = 0; r < tile.rows; ++r) {
        const auto part = [&](int64_t i) {
            return RowSums::at(parts + i * size, DECODE_ROWS, call.dim).part(r, call.dim);
        };
        write_lse(call, tile, r, merge_parts(count, call.dim, row, part));
        store_row(row, call.dim, at(call.o, call.type, row_offset(tile, call, r)), call.type);
    }
}

} // namespace dsmr::DSMR_ISA

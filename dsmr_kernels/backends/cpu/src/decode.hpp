// Decoding: the rows of a call that has few of them, memory and segment in parts that several cores share.
#pragma once

#include "decode_bytes.hpp"
#include "logits.hpp"

namespace dsmr::DSMR_ISA {

constexpr int DECODE_ROWS = 8; // with more rows, tiles of 16 lanes are faster

// Products s[count][ROWS] of the rows from `row` on become logits, but for the factor that is returned: all that a call
// may ask for.
template <int ROWS>
static __attribute__((noinline)) float prepare_rows(const DsmrCall& call, const Lane& lane, const Tile& tile,
                                                    const LogitRule& rule, const Block& block, int64_t row, float* s) {
    if (rule.capped) {
        const Vec inward = broadcast(rule.factor / rule.softcap), outward = broadcast(rule.softcap);
        for (int64_t i = 0; i < block.count * ROWS; i += WIDTH) {
            store(s + i, mul(tanh(mul(load(s + i), inward)), outward));
        }
    }
    const float factor = rule.capped ? 1.0f : rule.factor;
    if (rule.sloped) {
        for (int64_t k = 0; k < block.count; ++k) {
            const float position = block_position(call, lane, block, k);
            for (int64_t i = 0; i < ROWS; ++i) {
                float& x = s[k * ROWS + i];
                x = x * factor + rule.slopes[row + i] * (position - float(tile.token[row + i]));
            }
        }
    }
    for (int64_t i = 0; block.masked && i < ROWS; ++i) {
        const int64_t r = row + i;
        const int64_t hidden = (block.run ? entries_before(*block.run, tile.bound[r]) : tile.bound[r]) - block.first;
        const int64_t last = block.run ? block.count - 1 : tile.token[r] - block.first;
        for (int64_t k = 0; k < least(hidden, block.count); ++k) s[k * ROWS + i] = HIDDEN;
        for (int64_t k = most(last + 1, 0); k < block.count; ++k) s[k * ROWS + i] = HIDDEN;
    }
    return rule.sloped ? 1.0f : factor;
}

// One KV head's rows against the entries [first, last) of its visible memory and, if `with_segment`, the segment.
class DecodeRows {
public:
    DecodeRows(const DsmrCall& call, const Lane& lane, const Tile& tile, const RowSums& sums)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), sums_(sums), dim_(call.dim),
          memory_keys_(row_keys(call.ring_type)), segment_keys_(row_keys(call.type)),
          in_pairs_(HAS_PAIRS && tile.rows > 1 && call.type == DSMR_BF16 && call.ring_type == DSMR_BF16 &&
                    dim_ % (2 * WIDTH) == 0) {
        for (int64_t r = 0; r < tile.rows; ++r) {
            const void* const row = at(call.q.data, call.type, row_offset(tile, call.q, r));
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
        for (int i = 0; i < lane_.runs; first -= lane_.run[i].count, last -= lane_.run[i].count, ++i) {
            const Run& run = lane_.run[i];
            const int64_t from = most(most(first, 0), entries_before(run, tile_.lowest)), to = least(last, run.count);
            for (int64_t k = from; k < to; k += memory_keys_) attend(memory_block(run, k, to));
        }
        if (!with_segment) return;
        const int64_t end = tile_.last_token + 1;
        for (int64_t k = most(tile_.lowest, 0); k < end; k += segment_keys_) attend(segment_block(k));
    }

private:
    Block memory_block(const Run& run, int64_t first, int64_t end) const {
        const int64_t slot = run.slot + first, lane = tile_.lane, head = tile_.kv_head;
        return {ring_rows(call_, call_.ring_k, lane, head, slot),
                ring_rows(call_, call_.ring_v, lane, head, slot),
                ring_scales(call_.ring_k, lane, head, slot),
                ring_scales(call_.ring_v, lane, head, slot),
                least(memory_keys_, end - first),
                &run,
                first,
                entries_before(run, tile_.highest_bound) > first};
    }

    Block segment_block(int64_t first) const {
        const int64_t count = least(segment_keys_, tile_.last_token + 1 - first);
        const int64_t lane = tile_.lane, head = tile_.kv_head;
        const bool masked = tile_.highest_bound > first || first + count - 1 > tile_.first_token;
        return {segment_rows(call_, call_.k, lane, head, first),
                segment_rows(call_, call_.v, lane, head, first), nullptr, nullptr, count, nullptr, first, masked};
    }

    void attend(const Block& block) {
        const auto prepare = [&](auto rows, int64_t row, float* s) {
            if (!block.masked && !rule_.capped && !rule_.sloped) return rule_.factor;
            return prepare_rows<decltype(rows)::value>(call_, lane_, tile_, rule_, block, row, s);
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
    const int64_t dim_, memory_keys_, segment_keys_; // keys: at most so many a block
    const bool in_pairs_; // for one row, reading takes longer than computing, and pairs read more slowly
    alignas(ALIGNMENT) float queries_[DECODE_ROWS * LARGEST_DIM]; // [rows][padded dim], bf16 if in pairs
#ifdef __AVX512VNNI__
    bool in_bytes_;
    ByteQueries byte_queries_;
#endif
};

// The sums of all parts of a head, joined in order, as output and lse.
DSMR_INLINE void finish_rows(const DsmrCall& call, const Tile& tile, float* parts, int64_t count) {
    const int64_t size = RowSums::floats(DECODE_ROWS, call.dim), pitch = padded(call.dim);
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)];
    for (int64_t r = 0; r < tile.rows; ++r) {
        float highest = HIDDEN, total = 0.0f;
        std::memset(row, 0, sizeof row);
        for (int64_t i = 0; i < count; ++i) {
            const float part = RowSums::at(parts + i * size, DECODE_ROWS, call.dim).highest[r];
            highest = part > highest ? part : highest;
        }
        for (int64_t i = 0; i < count; ++i) {
            const RowSums part = RowSums::at(parts + i * size, DECODE_ROWS, call.dim);
            // Not the difference of two that are HIDDEN.
            const float shrink = part.highest[r] < highest ? __builtin_exp2f(part.highest[r] - highest) : 1.0f;
            total += part.total[r] * shrink;
            for (int64_t d = 0; d < pitch; ++d) row[d] += part.out[r * pitch + d] * shrink;
        }
        const float inverse = total == 0 ? 0.0f : 1.0f / total; // a row that sees nothing: zeros
        for (int64_t d = 0; d < pitch; ++d) row[d] *= inverse;
        store_row(row, call.dim, at(call.o, call.type, row_offset(tile, call, r)), call.type);
        write_lse(call, tile, r, highest, total);
    }
}

} // namespace dsmr::DSMR_ISA

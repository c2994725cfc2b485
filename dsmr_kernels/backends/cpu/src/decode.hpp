// Attention of a few rows, as generation asks for it: at memory bandwidth. Here the elements of a row lie in the lanes,
// every key and value is read once for all rows of its head, and nothing is packed.
#pragma once

#include "logits.hpp"

namespace dsmr::DSMR_ISA {

constexpr int DECODE_ROWS = 8;  // with more rows, tiles of 16 lanes are faster
constexpr int DECODE_KEYS = 64; // keys a block: their float values are 16 KB for a head dimension of 64

// What a part of the keys adds up to, for some rows: [rows][padded dim] each, and two numbers a row.
struct RowSums {
    float *out, *highest, *total;

    static int64_t floats(int64_t rows, int64_t dim) { return rows * (padded(dim) + 2); }
    static RowSums at(float* data, int64_t rows, int64_t dim) {
        return {data, data + rows * padded(dim), data + rows * (padded(dim) + 1)};
    }
};

// Some keys or values and, where it pays, what to fetch into the cache while reading them.
template <class T>
struct Stream {
    const T* data;
    int64_t stride, count;
    const T* next; // or null
    int64_t next_stride, next_count;

    // Wide elements leave the memory system idle while one stream is computed with; narrow ones are limited elsewhere.
    DSMR_INLINE bool prefetches() { return sizeof(T) == 4; }
    void prefetch(int64_t i, int64_t dim) const {
        if (!prefetches() || i >= next_count) return;
        const char* const row = reinterpret_cast<const char*>(next + i * next_stride);
        for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(row + byte, 0, 3);
    }
};

// s[r][k] = q[r] . key[k]. FULL: vectors that a row fills, known at compile time, or 0.
template <class T, int ROWS, int FULL>
static __attribute__((noinline)) void score(const Stream<T>& keys, const float* q, int64_t dim, float* s) {
    constexpr int KEYS = 4 / ROWS; // as many as make four sums
    const int64_t full = FULL ? FULL : dim / WIDTH, rest = FULL ? 0 : dim % WIDTH, pitch = padded(dim);
    for (int64_t k = 0; k < keys.count; k += KEYS) {
        const T* row[KEYS];
        for (int c = 0; c < KEYS; ++c) { // beyond the last key: the last key again
            row[c] = keys.data + least(k + c, keys.count - 1) * keys.stride;
            keys.prefetch(k + c, dim);
        }
        Vec sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
        for (int64_t d = 0; d < full * WIDTH; d += WIDTH) {
#pragma GCC unroll 4
            for (int c = 0; c < KEYS; ++c) {
                const Vec x = load(row[c] + d);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r) {
                    sums[c * ROWS + r] = fma(x, load(q + r * pitch + d), sums[c * ROWS + r]);
                }
            }
        }
        if (rest) {
            for (int c = 0; c < KEYS; ++c) {
                const Vec x = load_part(row[c] + full * WIDTH, rest);
                for (int r = 0; r < ROWS; ++r) {
                    sums[c * ROWS + r] = fma(x, load(q + r * pitch + full * WIDTH), sums[c * ROWS + r]);
                }
            }
        }
        float products[4];
        sum4(sums[0], sums[1], sums[2], sums[3], products);
        for (int c = 0; c < KEYS; ++c) {
            for (int r = 0; r < ROWS; ++r) s[r * DECODE_KEYS + k + c] = products[c * ROWS + r];
        }
    }
}

constexpr int chunk_for(int rows) { // vectors of a row that stay in registers, a power of two
    int chunk = 8;
    while (chunk > 1 && chunk * rows > ACCUMULATORS * 3 / 4) chunk /= 2;
    return chunk;
}

// out[r] = out[r] shrink[r] + sum over k of w[r][k] value[k], for vectors from `first` on, CHUNK at a time.
template <class T, int ROWS, int CHUNK>
DSMR_INLINE void accumulate_from(int64_t first, const Stream<T>& values, const float* w, const float* shrink,
                                 int64_t dim, float* out) {
    const int64_t full = dim / WIDTH, pitch = padded(dim);
    for (; first + CHUNK <= full; first += CHUNK) {
        Vec sums[ROWS][CHUNK];
        for (int r = 0; r < ROWS; ++r) {
            for (int j = 0; j < CHUNK; ++j) {
                sums[r][j] = mul(load(out + r * pitch + (first + j) * WIDTH), broadcast(shrink[r]));
            }
        }
        for (int64_t k = 0; k < values.count; ++k) {
            const T* const row = values.data + k * values.stride + first * WIDTH;
            if (first == 0) values.prefetch(k, dim);
            Vec x[CHUNK];
#pragma GCC unroll 8
            for (int j = 0; j < CHUNK; ++j) x[j] = load(row + j * WIDTH);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Vec weight = broadcast(w[r * DECODE_KEYS + k]);
#pragma GCC unroll 8
                for (int j = 0; j < CHUNK; ++j) sums[r][j] = fma(weight, x[j], sums[r][j]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int j = 0; j < CHUNK; ++j) store(out + r * pitch + (first + j) * WIDTH, sums[r][j]);
        }
    }
    if constexpr (CHUNK > 1) {
        accumulate_from<T, ROWS, CHUNK / 2>(first, values, w, shrink, dim, out);
    } else if (dim % WIDTH) {
        for (int r = 0; r < ROWS; ++r) {
            Vec sums = mul(load(out + r * pitch + full * WIDTH), broadcast(shrink[r]));
            for (int64_t k = 0; k < values.count; ++k) {
                const Vec x = load_part(values.data + k * values.stride + full * WIDTH, dim % WIDTH);
                sums = fma(broadcast(w[r * DECODE_KEYS + k]), x, sums);
            }
            store(out + r * pitch + full * WIDTH, sums);
        }
    }
}

template <class T, int ROWS>
static __attribute__((noinline)) void accumulate(const Stream<T>& values, const float* w, const float* shrink,
                                                 int64_t dim, float* out) {
    accumulate_from<T, ROWS, chunk_for(ROWS)>(0, values, w, shrink, dim, out);
}

// Products s[count] of one row become logits: all that a call may ask for. `tile` and `rule` know the row as `r`.
DSMR_INLINE void prepare_row(const DsmrCall& call, const Lane& lane, const Tile& tile, const LogitRule& rule,
                             const Block& block, int64_t r, float* s) {
    if (block.key_scale) {
        for (int64_t k = 0; k < block.count; ++k) s[k] *= block.key_scale[k];
    }
    if (rule.capped) {
        const Vec inward = broadcast(1.0f / rule.softcap), outward = broadcast(rule.softcap);
        for (int64_t k = 0; k < block.count; k += WIDTH) store(s + k, mul(tanh(mul(load(s + k), inward)), outward));
    }
    if (rule.sloped) {
        for (int64_t k = 0; k < block.count; ++k) {
            s[k] += rule.slopes[r] * (block_position(call, lane, block, k) - float(tile.token[r]));
        }
    }
    if (block.masked) {
        const int64_t hidden = (block.run ? entries_before(*block.run, tile.bound[r]) : tile.bound[r]) - block.first;
        const int64_t last = block.run ? block.count - 1 : tile.token[r] - block.first;
        for (int64_t k = 0; k < least(hidden, block.count); ++k) s[k] = HIDDEN;
        for (int64_t k = most(last + 1, 0); k < block.count; ++k) s[k] = HIDDEN;
    }
}

// Logits become weights; returns by how much the earlier sums shrink.
DSMR_INLINE float exponentiate_row(int64_t count, const float* value_scale, float* s, float* highest, float* total) {
    const int64_t end = ceil_div(count, WIDTH) * WIDTH;
    for (int64_t k = count; k < end; ++k) s[k] = HIDDEN;
    Vec most_of_each = broadcast(*highest), sums = broadcast(0.0f);
    for (int64_t k = 0; k < end; k += WIDTH) most_of_each = max(most_of_each, load(s + k));
    const float now = largest(most_of_each), shrink = *highest < now ? __builtin_exp2f(*highest - now) : 1.0f;
    for (int64_t k = 0; k < end; k += WIDTH) {
        const Vec weight = exp2(sub(load(s + k), broadcast(now)));
        sums = add(sums, weight);
        store(s + k, weight);
    }
    *highest = now, *total = *total * shrink + sum(sums);
    if (value_scale) {
        for (int64_t k = 0; k < count; ++k) s[k] *= value_scale[k];
    }
    return shrink;
}

// One KV head's rows against the entries [first, last) of its visible memory and, if `with_segment`, the segment.
class DecodeRows {
public:
    DecodeRows(const DsmrCall& call, const Lane& lane, const Tile& tile, const RowSums& sums)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), sums_(sums), dim_(call.dim),
          group_(tile.rows > 2 ? 4 : int(tile.rows)), groups_(ceil_div(tile.rows, group_)) {
        const int64_t pitch = padded(dim_);
        std::memset(queries_, 0, DECODE_ROWS * pitch * sizeof(float));
        for (int64_t r = 0; r < tile.rows; ++r) {
            const void* const row = at(call.q.data, call.type, row_offset(tile, call.q, r));
            with_type(row, call.type, [&](auto* p) {
                copy_row(p, dim_, float(call.scale) * LOG2E, queries_ + r * pitch, pitch);
            });
        }
        for (int64_t r = 0; r < DECODE_ROWS; ++r) sums_.highest[r] = LOWEST, sums_.total[r] = 0.0f;
        std::memset(sums_.out, 0, DECODE_ROWS * pitch * sizeof(float));
    }

    void run(int64_t first, int64_t last, bool with_segment) {
        for (int i = 0; i < lane_.runs; first -= lane_.run[i].count, last -= lane_.run[i].count, ++i) {
            const Run& run = lane_.run[i];
            const int64_t from = most(most(first, 0), entries_before(run, tile_.lowest)), to = least(last, run.count);
            with_type(call_.ring_k.data, call_.ring_type, [&](auto* p) {
                for (int64_t k = from; k < to; k += DECODE_KEYS) attend(p, memory_block(run, k, to), to - k);
            });
        }
        if (!with_segment) return;
        with_type(call_.k.data, call_.type, [&](auto* p) {
            const int64_t end = tile_.last_token + 1;
            for (int64_t k = most(tile_.lowest, 0); k < end; k += DECODE_KEYS) attend(p, segment_block(k), end - k);
        });
    }

private:
    Block memory_block(const Run& run, int64_t first, int64_t end) const {
        const int64_t slot = run.slot + first, lane = tile_.lane, head = tile_.kv_head;
        return {ring_rows(call_, call_.ring_k, lane, head, slot),
                ring_rows(call_, call_.ring_v, lane, head, slot),
                ring_scales(call_.ring_k, lane, head, slot),
                ring_scales(call_.ring_v, lane, head, slot),
                least(DECODE_KEYS, end - first),
                &run,
                first,
                entries_before(run, tile_.highest_bound) > first};
    }

    Block segment_block(int64_t first) const {
        const int64_t count = least(DECODE_KEYS, tile_.last_token + 1 - first), lane = tile_.lane, head = tile_.kv_head;
        const bool masked = tile_.highest_bound > first || first + count - 1 > tile_.first_token;
        return {segment_rows(call_, call_.k, lane, head, first),
                segment_rows(call_, call_.v, lane, head, first), nullptr, nullptr, count, nullptr, first, masked};
    }

    // `keys_left`: how many keys follow in memory from the block's first on.
    template <class T>
    void attend(const T*, const Block& block, int64_t keys_left) {
        const T* const keys = static_cast<const T*>(block.keys.data);
        const T* const values = static_cast<const T*>(block.values.data);
        const int64_t stride = block.keys.stride, v_stride = block.values.stride;
        const int64_t after = least(DECODE_KEYS, keys_left - block.count);
        for (int64_t g = 0; g < groups_; ++g) { // only the first group waits for memory
            const bool fetch = g == 0;
            const Stream<T> k{keys, stride, block.count, values, v_stride, fetch ? block.count : 0};
            const Stream<T> v{values, v_stride, block.count, keys + block.count * stride, stride, fetch ? after : 0};
            if (group_ == 1) attend_group<T, 1>(block, k, v, 0);
            else if (group_ == 2) attend_group<T, 2>(block, k, v, 0);
            else attend_group<T, 4>(block, k, v, 4 * g);
        }
    }

    template <class T, int ROWS>
    void attend_group(const Block& block, const Stream<T>& keys, const Stream<T>& values, int64_t first_row) {
        alignas(ALIGNMENT) float s[ROWS * DECODE_KEYS];
        const float* const q = queries_ + first_row * padded(dim_);
        if (dim_ == 64) score<T, ROWS, 64 / WIDTH>(keys, q, dim_, s);
        else score<T, ROWS, 0>(keys, q, dim_, s);
        float shrink[ROWS];
        for (int64_t i = 0; i < ROWS; ++i) {
            const int64_t r = first_row + i;
            float* const row = s + i * DECODE_KEYS;
            if (!is_plain(rule_, block)) prepare_row(call_, lane_, tile_, rule_, block, r, row);
            shrink[i] = exponentiate_row(block.count, block.value_scale, row, sums_.highest + r, sums_.total + r);
        }
        accumulate<T, ROWS>(values, s, shrink, dim_, sums_.out + first_row * padded(dim_));
    }

    const DsmrCall& call_;
    const Lane& lane_;
    const Tile& tile_;
    const LogitRule rule_;
    const RowSums sums_;
    const int64_t dim_;
    const int group_;
    const int64_t groups_;
    alignas(ALIGNMENT) float queries_[DECODE_ROWS * LARGEST_DIM];
};

// The sums of all parts of a head, joined in order, as output and lse.
DSMR_INLINE void finish_rows(const DsmrCall& call, const Tile& tile, float* parts, int64_t count) {
    const int64_t size = RowSums::floats(DECODE_ROWS, call.dim), pitch = padded(call.dim);
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)];
    for (int64_t r = 0; r < tile.rows; ++r) {
        float highest = LOWEST, total = 0.0f;
        std::memset(row, 0, sizeof row);
        for (int64_t i = 0; i < count; ++i) {
            const float part = RowSums::at(parts + i * size, DECODE_ROWS, call.dim).highest[r];
            highest = part > highest ? part : highest;
        }
        for (int64_t i = 0; i < count; ++i) {
            const RowSums part = RowSums::at(parts + i * size, DECODE_ROWS, call.dim);
            const float shrink = __builtin_exp2f(part.highest[r] - highest);
            total += part.total[r] * shrink;
            for (int64_t d = 0; d < pitch; ++d) row[d] += part.out[r * pitch + d] * shrink;
        }
        const float inverse = total == 0 ? 0.0f : 1.0f / total; // a row that sees nothing: zeros
        for (int64_t d = 0; d < pitch; ++d) row[d] *= inverse;
        store_row(row, call.dim, at(call.o, call.type, row_offset(tile, call, r)), call.type);
        call.lse[lse_offset(tile, call, r)] = total == 0 ? HIDDEN : (highest + __builtin_log2f(total)) * LN2;
    }
}

} // namespace dsmr::DSMR_ISA

// Attention of a few rows at memory bandwidth: the elements of a row lie in vectors, every key and value is read once
// for up to four rows, and nothing is packed. What generation asks for; a tile of 16 rows would be almost empty.
#pragma once

#include <type_traits>

#include "logits.hpp"

namespace dsmr::DSMR_ISA {

// Keys a block. Of floats so many that the processor, which foresees one stream better than two that take turns, spends
// most of its time in long ones; of narrower types few enough for one block's computing to hide behind the next's reads.
template <class T>
constexpr int ROW_KEYS = sizeof(T) == sizeof(float) ? 1024 : 64;
DSMR_INLINE int64_t row_keys(int64_t type) { return type == DSMR_FP32 ? ROW_KEYS<float> : ROW_KEYS<bf16>; }

// Up to ROW_KEYS<T> consecutive keys and their values; scales of quantised types or null.
template <class T>
struct KeyBlock {
    const T *keys, *values;
    int64_t key_stride, value_stride;
    const float *key_scale, *value_scale;
    int64_t count;
    bool masked; // does some row not see some key?
};

// How elements of type T multiply: as floats, whatever they are stored as.
template <class T>
struct AsFloats {
    using Key = T;
    using Query = float;
    static constexpr int STEP = WIDTH;          // elements of a register
    static constexpr int KEYS = ROW_KEYS<T>;    // at most, in a block
    DSMR_INLINE const float* row(const float* q, int64_t r, int64_t dim) { return q + r * padded(dim); }
    DSMR_INLINE Vec load_key(const T* p) { return load(p); }
    DSMR_INLINE Vec load_query(const float* p) { return load(p); }
    DSMR_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
#ifdef __AVX512BF16__
// In pairs of bf16, for dimensions that are multiples of STEP; weights are rounded to bf16, as in tiles.
struct AsPairs {
    using Key = bf16;
    using Query = bf16;
    static constexpr int STEP = 2 * WIDTH;
    static constexpr int KEYS = ROW_KEYS<bf16>;
    DSMR_INLINE const bf16* row(const bf16* q, int64_t r, int64_t dim) { return q + r * padded(dim); }
    DSMR_INLINE Pairs load_key(const bf16* p) { return load_pairs(reinterpret_cast<const uint32_t*>(p)); }
    DSMR_INLINE Pairs load_query(const bf16* p) { return load_key(p); }
    DSMR_INLINE Vec multiply_add(Pairs a, Pairs b, Vec c) { return dot(c, a, b); }
};
#endif

// `p`, which the compiler must take to depend on `value`: it puts no read by it before the last of what makes `value`.
template <class T>
DSMR_INLINE const T* after(Vec value, const T* p) {
    __asm__("" : "+r"(p) : "X"(value));
    return p;
}

// out[c][r] = q[r] . key[c], for as many keys as make four sums. A key is read to its end before the next one is begun:
// the processor fetches ahead of reads in order, and of none better.
template <class Math, int ROWS, int FULL>
DSMR_INLINE void score_keys(const typename Math::Key* const (&key)[4 / ROWS], const typename Math::Query* __restrict q,
                            int64_t dim, float* __restrict out) {
    const int64_t full = FULL ? FULL : dim / Math::STEP, rest = FULL ? 0 : dim % Math::STEP, pitch = padded(dim);
    Vec sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
#pragma GCC unroll 4
    for (int c = 0; c < 4 / ROWS; ++c) {
        const typename Math::Key* const elements = c ? after(sums[c * ROWS - 1], key[c]) : key[c];
#pragma GCC unroll 8
        for (int64_t d = 0; d < full * Math::STEP; d += Math::STEP) {
            const auto x = Math::load_key(elements + d);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                Vec& sum = sums[c * ROWS + r];
                sum = Math::multiply_add(x, Math::load_query(q + r * pitch + d), sum);
            }
        }
        if constexpr (Math::STEP == WIDTH) {
            if (!rest) continue;
            const Vec x = load_part(elements + full * WIDTH, rest);
            for (int r = 0; r < ROWS; ++r) {
                sums[c * ROWS + r] = fma(x, load(q + r * pitch + full * WIDTH), sums[c * ROWS + r]);
            }
        }
    }
    sum4(sums[0], sums[1], sums[2], sums[3], out);
}

// s[k][r] = q[r] . key[k]. FULL: registers that a row fills, known at compile time, or 0.
template <class Math, int ROWS, int FULL>
static __attribute__((noinline)) void score(const typename Math::Key* keys, int64_t stride, int64_t count,
                                            const typename Math::Query* __restrict q, int64_t dim,
                                            float* __restrict s) {
    constexpr int KEYS = 4 / ROWS;
    const typename Math::Key* key[KEYS];
    int64_t k = 0;
    for (; k + KEYS <= count; k += KEYS) {
        for (int c = 0; c < KEYS; ++c) key[c] = keys + (k + c) * stride;
        score_keys<Math, ROWS, FULL>(key, q, dim, s + k * ROWS);
    }
    if (k == count) return;
    for (int c = 0; c < KEYS; ++c) key[c] = keys + least(k + c, count - 1) * stride; // the last key again
    score_keys<Math, ROWS, FULL>(key, q, dim, s + k * ROWS);
}

// s[k][r] = q[r] . key[k], scales included.
template <class Math, int ROWS>
struct Score {
    DSMR_INLINE void run(const KeyBlock<typename Math::Key>& block, const typename Math::Query* q, int64_t dim,
                         float* s) {
        if (dim == 64) score<Math, ROWS, 64 / Math::STEP>(block.keys, block.key_stride, block.count, q, dim, s);
        else score<Math, ROWS, 0>(block.keys, block.key_stride, block.count, q, dim, s);
        scale_keys<ROWS>(block.key_scale, block.count, s);
    }
};

// Logits are products times `factor`; they become weights [k][r], with zeros behind them to a multiple of WIDTH.
// Returns by how much the earlier sums shrink.
template <int ROWS>
DSMR_INLINE void exponentiate(int64_t count, float factor, float* s, const RowSums& sums, float* shrink) {
    constexpr int VECS = ROWS > WIDTH ? ROWS / WIDTH : 1, PERIOD = VECS * WIDTH; // after so many, rows come again
    const int64_t end = ceil_div(count * ROWS, PERIOD) * PERIOD;
    for (int64_t i = count * ROWS; i < end; ++i) s[i] = HIDDEN;
    Vec most_of_each[VECS], total[VECS], minus_highest[VECS];
    for (int j = 0; j < VECS; ++j) most_of_each[j] = broadcast(HIDDEN), total[j] = broadcast(0.0f);
    for (int64_t i = 0; i < end; i += PERIOD) {
        for (int j = 0; j < VECS; ++j) most_of_each[j] = max(most_of_each[j], load(s + i + j * WIDTH));
    }
    alignas(ALIGNMENT) float each[PERIOD];
    for (int j = 0; j < VECS; ++j) store(each + j * WIDTH, most_of_each[j]);
    for (int r = 0; r < ROWS; ++r) {
        float now = each[r];
        for (int i = r + ROWS; i < PERIOD; i += ROWS) now = each[i] > now ? each[i] : now;
        const float before = sums.highest[r];
        now = now * factor > before ? now * factor : before;
        shrink[r] = shrinkage(before, now);
        sums.highest[r] = now;
    }
    for (int i = 0; i < PERIOD; ++i) each[i] = sums.highest[i % ROWS];
    bool coarse = false;
    for (int j = 0; j < VECS; ++j) {
        minus_highest[j] = minus_base(load(each + j * WIDTH));
        coarse |= is_coarse(minus_highest[j]);
    }
    if (coarse) {
        apply_factor(s, end, factor);
        factor = 1.0f;
    }
    const Vec f = broadcast(factor);
    for (int64_t i = 0; i < end; i += PERIOD) {
        for (int j = 0; j < VECS; ++j) {
            const Vec weight = weight_of<1>(load(s + i + j * WIDTH), f, minus_highest[j]);
            total[j] = add(total[j], weight);
            store(s + i + j * WIDTH, weight);
        }
    }
    for (int j = 0; j < VECS; ++j) store(each + j * WIDTH, total[j]);
    for (int r = 0; r < ROWS; ++r) {
        float sum = each[r];
        for (int i = r + ROWS; i < PERIOD; i += ROWS) sum += each[i];
        sums.total[r] = sums.total[r] * shrink[r] + sum;
    }
}

constexpr int chunk_for(int rows) { // vectors of a row that stay in registers, a power of two
    int chunk = 8;
    while (chunk > 1 && chunk * rows > ACCUMULATORS * 3 / 4) chunk /= 2;
    return chunk;
}

// out[r] = out[r] shrink[r] + sum over k of w[k][r] value[k], for vectors from `first` on, CHUNK at a time.
template <class T, int ROWS, int CHUNK>
DSMR_INLINE void accumulate_from(int64_t first, const T* values, int64_t stride, int64_t count, const float* w,
                                 const float* shrink, int64_t dim, float* out) {
    const int64_t full = dim / WIDTH, pitch = padded(dim);
    for (; first + CHUNK <= full; first += CHUNK) {
        Vec sums[ROWS][CHUNK];
        for (int r = 0; r < ROWS; ++r) {
            for (int j = 0; j < CHUNK; ++j) {
                sums[r][j] = mul(load(out + r * pitch + (first + j) * WIDTH), broadcast(shrink[r]));
            }
        }
        for (int64_t k = 0; k < count; ++k) {
            const T* const row = values + k * stride + first * WIDTH;
            Vec x[CHUNK];
#pragma GCC unroll 8
            for (int j = 0; j < CHUNK; ++j) x[j] = load(row + j * WIDTH);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Vec weight = broadcast(w[k * ROWS + r]);
#pragma GCC unroll 8
                for (int j = 0; j < CHUNK; ++j) sums[r][j] = fma(weight, x[j], sums[r][j]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int j = 0; j < CHUNK; ++j) store(out + r * pitch + (first + j) * WIDTH, sums[r][j]);
        }
    }
    if constexpr (CHUNK > 1) {
        accumulate_from<T, ROWS, CHUNK / 2>(first, values, stride, count, w, shrink, dim, out);
    } else if (dim % WIDTH) {
        for (int r = 0; r < ROWS; ++r) {
            Vec sums = mul(load(out + r * pitch + full * WIDTH), broadcast(shrink[r]));
            for (int64_t k = 0; k < count; ++k) {
                const Vec x = load_part(values + k * stride + full * WIDTH, dim % WIDTH);
                sums = fma(broadcast(w[k * ROWS + r]), x, sums);
            }
            store(out + r * pitch + full * WIDTH, sums);
        }
    }
}

template <class Math, int ROWS>
struct Accumulate {
    using T = typename Math::Key;
    static __attribute__((noinline)) void run(const T* values, int64_t stride, int64_t count, const float* w,
                                              const float* shrink, int64_t dim, float* out) {
        accumulate_from<T, ROWS, chunk_for(ROWS)>(0, values, stride, count, w, shrink, dim, out);
    }
};

#ifdef __AVX512BF16__
// Two keys at a time.
template <int ROWS>
struct Accumulate<AsPairs, ROWS> {
    static __attribute__((noinline)) void run(const bf16* values, int64_t stride, int64_t count, const float* w,
                                              const float* shrink, int64_t dim, float* out) {
        alignas(ALIGNMENT) uint32_t pairs[ROWS * ROW_KEYS<bf16> / 2];
        const int64_t weights = ceil_div(count * ROWS, WIDTH) * WIDTH; // zeros behind the last key's
        for (int64_t i = 0; i < weights; i += 2 * WIDTH) {
            const Vec high = i + WIDTH < weights ? load(w + i + WIDTH) : broadcast(0.0f);
            store_pairs(pairs + i / 2, pair_rows<ROWS>(load(w + i), high));
        }
        int64_t d = 0;
        for (; d + 64 <= dim; d += 64) panel<64 / WIDTH>(d, values, stride, count, pairs, shrink, dim, out);
        if (d < dim) panel<32 / WIDTH>(d, values, stride, count, pairs, shrink, dim, out);
    }

private:
    // out[r] = out[r] shrink[r] + sum over k of w[k][r] value[k], for VECS vectors from element `first` on.
    template <int VECS>
    DSMR_INLINE void panel(int64_t first, const bf16* values, int64_t stride, int64_t count, const uint32_t* pairs,
                           const float* shrink, int64_t dim, float* out) {
        const int64_t pitch = padded(dim);
        Vec sums[ROWS][VECS];
        for (int r = 0; r < ROWS; ++r) {
            const float* const from = out + r * pitch + first;
            for (int j = 0; j < VECS; ++j) sums[r][j] = mul(load(from + j * WIDTH), broadcast(shrink[r]));
        }
        for (int64_t k = 0; k < count; k += 2) { // beyond the last key: the last key again, its weight being zero
            const bf16* const even = values + k * stride + first;
            const bf16* const odd = values + least(k + 1, count - 1) * stride + first;
            Pairs x[VECS];
#pragma GCC unroll 4
            for (int j = 0; j < VECS; j += 2) {
                const Pairs a = AsPairs::load_key(even + j * WIDTH), b = AsPairs::load_key(odd + j * WIDTH);
                x[j] = zip_halves(a, b, 0), x[j + 1] = zip_halves(a, b, WIDTH);
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Pairs weight = broadcast_pairs(pairs[k / 2 * ROWS + r]);
#pragma GCC unroll 4
                for (int j = 0; j < VECS; ++j) sums[r][j] = dot(sums[r][j], weight, x[j]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int j = 0; j < VECS; ++j) store(out + r * pitch + first + j * WIDTH, sums[r][j]);
        }
    }
};
#endif

// out[r] = out[r] shrink[r] + sum over k of w[k][r] value[k], scales included.
template <class Math, int ROWS>
struct WeighValues {
    DSMR_INLINE void run(const KeyBlock<typename Math::Key>& block, float* w, const float* shrink, int64_t dim,
                         float* out) {
        scale_keys<ROWS>(block.value_scale, block.count, w);
        Accumulate<Math, ROWS>::run(block.values, block.value_stride, block.count, w, shrink, dim, out);
    }
};

// The same, pair by pair, for a block that not every row sees and that holds what is not finite. In a product, a weight
// of 0 would not hide it: 0 x NaN is NaN.
template <class T, int ROWS>
static __attribute__((noinline)) void weigh_seen(const KeyBlock<T>& block, const float* w, const float* shrink,
                                                 int64_t dim, float* out) {
    const int64_t pitch = padded(dim);
    alignas(ALIGNMENT) float value[padded(LARGEST_DIM)];
    for (int r = 0; r < ROWS; ++r) {
        for (int64_t d = 0; d < pitch; d += WIDTH) {
            store(out + r * pitch + d, mul(load(out + r * pitch + d), broadcast(shrink[r])));
        }
    }
    for (int64_t k = 0; k < block.count; ++k) {
        copy_row(block.values + k * block.value_stride, dim, 1.0f, value, pitch);
        for (int r = 0; r < ROWS; ++r) {
            const float weight = w[k * ROWS + r], scaled = block.value_scale ? weight * block.value_scale[k] : weight;
            for (int64_t d = 0; weight != 0 && d < pitch; d += WIDTH) {
                float* const to = out + r * pitch + d;
                store(to, fma(broadcast(scaled), load(value + d), load(to)));
            }
        }
    }
}

template <class T>
DSMR_INLINE bool is_mixed(const KeyBlock<T>& block, int64_t dim) {
    return block.masked && !all_finite(block.values, block.value_stride, block.value_scale, block.count, dim);
}

template <class Math, int ROWS, class Prepare>
DSMR_INLINE void attend_group(const KeyBlock<typename Math::Key>& block, const typename Math::Query* q, int64_t row,
                              int64_t dim, const RowSums& sums, const Prepare& prepare) {
    alignas(ALIGNMENT) float s[ROWS * Math::KEYS];
    Score<Math, ROWS>::run(block, q, dim, s);
    const float factor = prepare(std::integral_constant<int, ROWS>(), row, s);
    float shrink[ROWS];
    exponentiate<ROWS>(block.count, factor, s, sums, shrink);
    if (is_mixed(block, dim)) weigh_seen<typename Math::Key, ROWS>(block, s, shrink, dim, sums.out);
    else WeighValues<Math, ROWS>::run(block, s, shrink, dim, sums.out);
}

// Rows q [rows][padded dim] against one block. `prepare(ROWS, row, s)`, with ROWS as a type, makes logits of products
// s [k][ROWS], those of the rows from `row` on, but for a factor that it returns.
template <class Math, class Prepare>
DSMR_INLINE void attend_rows(const KeyBlock<typename Math::Key>& block, const typename Math::Query* q, int64_t rows,
                             int64_t dim, const RowSums& sums, const Prepare& prepare) {
    const auto group = [&](auto size, int64_t row) {
        attend_group<Math, decltype(size)::value>(block, Math::row(q, row, dim), row, dim, sums.from_row(row, dim),
                                                  prepare);
    };
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) group(std::integral_constant<int, 4>(), row);
    if (row + 2 <= rows) group(std::integral_constant<int, 2>(), row), row += 2;
    if (row < rows) group(std::integral_constant<int, 1>(), row);
}

} // namespace dsmr::DSMR_ISA

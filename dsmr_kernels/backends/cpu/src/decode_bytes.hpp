// int8 keys and values multiplied as the bytes they are: exact integer dot products with queries and weights of 24
// bits, three bytes each. As floats, converting and multiplying take longer than reading does.
//
// A query row is q = unit (65536 l2 + 256 l1 + l0) to half a unit, 2^-24 of its largest element, of signed bytes l.
// Weights are unsigned numbers of three bytes, to 2^-25 of the largest of 64 keys'. No sum of 256 products overflows.
#pragma once

#include "append.hpp"
#include "decode_floats.hpp"

namespace dsmr::DSMR_ISA {

#ifdef __AVX512VNNI__

constexpr int PANEL = 64;    // dimensions that are multiplied at a time: 64 bytes
constexpr int LIMBS = 3;     // bytes of a number, the lowest first
constexpr int BYTE_ROWS = 8; // query rows, at most
constexpr float SMALLEST = 0x1p-100f, LARGEST = 0x1p100f; // what has a reciprocal with room for 24 bits; and 0

// Numbers per_unit x as signed bytes, in the order of x [PANEL].
DSMR_INLINE void split(const float* x, Vec per_unit, Bytes (&digits)[LIMBS]) {
    alignas(ALIGNMENT) static constexpr int32_t IN_ORDER[WIDTH] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const Ints half = broadcast_int(0x808080); // makes digits unsigned, and taken away again from each makes them signed
    Bytes numbers[4];
    for (int i = 0; i < 4; ++i) {
        numbers[i] = bytes_by_place((to_nearest(mul(load(x + i * WIDTH), per_unit)) + half) ^ half);
    }
    transpose_quads(numbers); // digits of one place each, with quads of the four vectors side by side
    for (int l = 0; l < LIMBS; ++l) digits[l] = bits_of(permuted(as_floats(numbers[l]), IN_ORDER));
}

// What numbers up to `largest` are counted in, for them to have 24 bits.
struct Unit {
    float value, reciprocal; // both 0 if all numbers are
    bool fits;               // false: `largest` is not finite, or floats have no reciprocal of its size
};
DSMR_INLINE Unit unit_for(float largest) {
    constexpr float MOST = 0x7f7f00; // rounded or not, what three bytes hold
    const bool fits = largest == 0.0f || (largest >= SMALLEST && largest <= LARGEST);
    return {largest / MOST, largest == 0.0f ? 0.0f : MOST / largest, fits};
}

// One query row.
struct alignas(ALIGNMENT) ByteQuery {
    int8_t limb[LARGEST_DIM / PANEL][LIMBS][4][64]; // [panel][limb][c]: quad 4p + c of the panel, four times, in part p
    int32_t offset[LIMBS][WIDTH];                   // what makes good for keys being 128 too large
    float unit;

    // False if the row cannot be written so: it is not finite, or of a size that floats have no reciprocal of.
    bool assign(const float* q, int64_t dim) {
        const Unit made = unit_for(largest_magnitude(q, dim));
        if (!made.fits) return false;
        unit = made.value;
        Ints sums[LIMBS] = {broadcast_int(0), broadcast_int(0), broadcast_int(0)};
        for (int64_t p = 0; p < dim / PANEL; ++p) {
            Bytes digits[LIMBS];
            split(q + p * PANEL, broadcast(made.reciprocal), digits);
            for (int l = 0; l < LIMBS; ++l) {
                Bytes x[4];
                repeat_quads(digits[l], x);
                for (int c = 0; c < 4; ++c) {
                    store_bytes(limb[p][l][c], x[c]);
                    sums[l] = dot_bytes(sums[l], plus_128((Bytes)broadcast_int(0)), x[c]);
                }
            }
        }
        for (int l = 0; l < LIMBS; ++l) store_bytes(offset[l], (Bytes)(-sums[l]));
        return true;
    }
};

// All rows of a tile.
struct ByteQueries {
    ByteQuery row[BYTE_ROWS];

    // From q [rows][padded dim]. False if they have to stay floats, as one row of several panels has: its keys would be
    // read panel after panel, out of order, which takes 1.6 times as long.
    bool assign(const float* q, int64_t rows, int64_t dim) {
        bool fit = rows <= BYTE_ROWS && (dim == PANEL || (dim % PANEL == 0 && rows > 1));
        for (int64_t r = 0; fit && r < rows; ++r) fit = row[r].assign(q + r * padded(dim), dim);
        return fit;
    }
};

// 65536 high + 256 middle + low
DSMR_INLINE Vec joined(Ints high, Ints middle, Ints low) {
    return fma(to_floats(add(times_256(high), middle)), broadcast(256.0f), to_floats(low));
}

// The last `count` keys or values and zeros behind them, `all` in all.
DSMR_INLINE void copy_keys(const int8_t* from, int64_t stride, int64_t count, int64_t all, int64_t dim, int8_t* to) {
    for (int64_t k = 0; k < count; ++k) std::memcpy(to + k * dim, from + k * stride, dim);
    std::memset(to + count * dim, 0, (all - count) * dim);
}

// Where each of WIDTH numbers comes from, for them to be
struct Order {
    int32_t from[WIDTH];
};
// [key][ROWS] instead of [ROWS][key];
template <int ROWS>
constexpr Order BY_KEY = [] {
    Order order{};
    for (int i = 0; i < WIDTH; ++i) order.from[i] = i % ROWS * (WIDTH / ROWS) + i / ROWS;
    return order;
}();
// [key / 4][ROWS][key % 4] instead of [key][ROWS];
template <int ROWS>
constexpr Order BY_FOURS = [] {
    Order order{};
    for (int i = 0; i < WIDTH; ++i) order.from[i] = (i / (4 * ROWS) * 4 + i % 4) * ROWS + i / 4 % ROWS;
    return order;
}();
// [key][ROWS], all rows alike, instead of [key].
template <int ROWS>
constexpr Order REPEATED = [] {
    Order order{};
    for (int i = 0; i < WIDTH; ++i) order.from[i] = i / ROWS;
    return order;
}();
template <int ROWS>
DSMR_INLINE Vec reordered(Vec a, const Order& order) {
    return ROWS == 1 ? a : permuted(a, order.from); // of one row, all orders are the same
}

// scale[k] of WIDTH / ROWS keys, `count` of which are there, once for each row.
template <int ROWS>
DSMR_INLINE Vec spread_scales(const float* scale, int64_t count) {
    return reordered<ROWS>(load_some(scale, least(count, WIDTH / ROWS)), REPEATED<ROWS>);
}

// Four rows of PANEL bytes, read in the order in which they lie (`after`). For several query rows, computing takes
// longer than reading, and what is asked for ahead has time to come. For one, asking for every line is slower than the
// processor's own foresight; asking for every second one helps where that sees little.
template <int ROWS>
DSMR_INLINE void load_four(const int8_t* row, int64_t stride, Bytes (&x)[4]) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        if (ROWS > 1) fetch_ahead(row, 64 * stride);
        else if (c % 2 == 0) fetch_ahead(row, 32 * stride);
        x[c] = load_bytes(row);
        row = after(as_floats(x[c]), row + stride);
    }
}

// s[k][r] = q[r] . key[k] scale[k] for KEYS keys, `count` of which have a scale. So many that what is loaded of a query
// serves two fours of keys, where registers hold their sums.
template <int ROWS>
constexpr int STEP_KEYS = ROWS == 1 ? 16 : 8;

template <int ROWS, int PANELS>
DSMR_INLINE void score_byte_keys(const int8_t* keys, int64_t stride, int64_t count, const float* scale,
                                 const ByteQuery* __restrict q, Vec units, int64_t dim, float* __restrict s) {
    constexpr int FOURS = STEP_KEYS<ROWS> / 4, AT_ONCE = PANELS == 1 ? 2 : 1;
    const int64_t panels = PANELS ? PANELS : dim / PANEL;
    Vec parts[ROWS * FOURS]; // [four][row] for four rows, [row][four] for fewer: what `sum_parts` makes one vector of
#pragma GCC unroll 4
    for (int first = 0; first < FOURS; first += AT_ONCE, keys += AT_ONCE * 4 * stride) {
        Ints sums[AT_ONCE][ROWS][LIMBS];
#pragma GCC unroll 4
        for (int f = 0; f < AT_ONCE; ++f) {
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                for (int l = 0; l < LIMBS; ++l) sums[f][r][l] = (Ints)load_bytes(q[r].offset[l]);
            }
        }
#pragma GCC unroll 4
        for (int64_t p = 0; p < panels; ++p) {
            Bytes x[AT_ONCE][4];
#pragma GCC unroll 4
            for (int f = 0; f < AT_ONCE; ++f) {
                load_four<ROWS>(keys + f * 4 * stride + p * PANEL, stride, x[f]);
#pragma GCC unroll 4
                for (int c = 0; c < 4; ++c) x[f][c] = plus_128(x[f][c]);
                transpose_quads(x[f]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                for (int l = 0; l < LIMBS; ++l) {
#pragma GCC unroll 4
                    for (int c = 0; c < 4; ++c) {
                        const Bytes digits = load_bytes(q[r].limb[p][l][c]);
#pragma GCC unroll 4
                        for (int f = 0; f < AT_ONCE; ++f) sums[f][r][l] = dot_bytes(sums[f][r][l], x[f][c], digits);
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
            for (int f = 0; f < AT_ONCE; ++f) {
                const int place = ROWS == 4 ? (first + f) * ROWS + r : r * FOURS + first + f;
                parts[place] = joined(sums[f][r][2], sums[f][r][1], sums[f][r][0]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS * FOURS; i += 4) {
        Vec products = sum_parts(parts[i], parts[i + 1], parts[i + 2], parts[i + 3]);
        products = mul(reordered<ROWS>(products, BY_KEY<ROWS>), units);
        const int64_t first = i * 4 / ROWS;
        if (scale) products = mul(products, spread_scales<ROWS>(scale + first, count - first));
        store(s + i * 4, products);
    }
}

template <int ROWS, int PANELS>
static __attribute__((noinline)) void score_bytes(const int8_t* keys, int64_t stride, int64_t count, const float* scale,
                                                  const ByteQuery* __restrict q, int64_t dim, float* __restrict s) {
    constexpr int KEYS = STEP_KEYS<ROWS>;
    alignas(ALIGNMENT) float units[WIDTH];
    for (int i = 0; i < WIDTH; ++i) units[i] = q[i % ROWS].unit;
    const Vec unit = load(units);
    int64_t k = 0;
    for (; k + KEYS <= count; k += KEYS) {
        const float* const scales = scale ? scale + k : nullptr;
        score_byte_keys<ROWS, PANELS>(keys + k * stride, stride, KEYS, scales, q, unit, dim, s + k * ROWS);
    }
    if (k == count) return;
    alignas(ALIGNMENT) int8_t last[KEYS * LARGEST_DIM];
    copy_keys(keys + k * stride, stride, count - k, KEYS, dim, last);
    score_byte_keys<ROWS, 0>(last, dim, count - k, scale ? scale + k : nullptr, q, unit, dim, s + k * ROWS);
}

// Of four keys and one row, a byte of each in an integer; the fourth integer is nothing.
struct Weights {
    int32_t limb[4];
};
constexpr float MOST_WEIGHT = 0xfffff0; // less than 2^24 even after rounding of a quotient and a product

// out[r] = out[r] shrink[r] + unit[r] sum over k of w[k][r] value[k], for ROWS of the ALL rows that w [fours][ALL] has
// as bytes.
template <int ALL, int ROWS>
DSMR_INLINE void accumulate_bytes(const int8_t* values, int64_t stride, int64_t fours, const Weights* w,
                                  const float* unit, const float* shrink, int64_t dim, float* out) {
    for (int64_t first = 0; first < dim; first += PANEL) {
        Ints sums[ROWS][LIMBS][4];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
            for (int l = 0; l < LIMBS; ++l) {
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sums[r][l][j] = broadcast_int(0);
            }
        }
        const int8_t* row = values + first;
        for (int64_t four = 0; four < fours; ++four, row += 4 * stride) {
            Bytes x[4];
            load_four<ALL>(row, stride, x);
            interleave_bytes(x);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                for (int l = 0; l < LIMBS; ++l) {
                    const Bytes weight = (Bytes)broadcast_int(w[four * ALL + r].limb[l]);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) sums[r][l][j] = dot_bytes(sums[r][l][j], weight, x[j]);
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            Vec part[4];
            float* const to = out + r * padded(dim) + first;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) part[j] = joined(sums[r][2][j], sums[r][1][j], sums[r][0][j]);
            transpose_parts(part);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Vec before = mul(load(to + j * WIDTH), broadcast(shrink[r]));
                store(to + j * WIDTH, fma(part[j], broadcast(unit[r]), before));
            }
        }
    }
}

// Weights w[k][ROWS] as bytes [four keys][ROWS] in units of unit[ROWS]. False, and nothing is written, if one is no
// number, negative, infinite, or the largest of a row of a size that has no reciprocal.
template <int ROWS>
DSMR_INLINE bool split_weights(const float* w, int64_t count, Weights* bytes, float* unit) {
    const int64_t end = ceil_div(count * ROWS, WIDTH) * WIDTH;
    Bytes bits = bits_of(load(w));
    for (int64_t i = WIDTH; i < end; i += WIDTH) bits = larger_bits(bits, bits_of(load(w + i)));
    bits = largest_bits<ROWS>(bits);
    if (!are_within(bits, SMALLEST, LARGEST)) return false;
    const Vec largest = as_floats(bits), per_unit = div(broadcast(MOST_WEIGHT), max(largest, broadcast(SMALLEST)));
    store_first<ROWS>(unit, mul(largest, broadcast(1.0f / MOST_WEIGHT)));
    for (int64_t i = 0; i < end; i += WIDTH) {
        const Vec x = reordered<ROWS>(mul(load(w + i), per_unit), BY_FOURS<ROWS>);
        store_bytes(bytes + i / 4, bytes_by_place(to_nearest(x)));
    }
    return true;
}

// As bytes, for dimensions that are multiples of PANEL.
struct AsBytes {
    using Key = int8_t;
    using Query = ByteQuery;
    static constexpr int KEYS = ROW_KEYS<int8_t>;
    DSMR_INLINE const ByteQuery* row(const ByteQuery* q, int64_t r, int64_t) { return q + r; }
};

template <int ROWS>
struct Score<AsBytes, ROWS> {
    DSMR_INLINE void run(const KeyBlock<int8_t>& block, const ByteQuery* q, int64_t dim, float* s) {
        if (dim == PANEL) score_bytes<ROWS, 1>(block.keys, block.key_stride, block.count, block.key_scale, q, dim, s);
        else score_bytes<ROWS, 0>(block.keys, block.key_stride, block.count, block.key_scale, q, dim, s);
    }
};

template <int ROWS>
struct WeighValues<AsBytes, ROWS> {
    static __attribute__((noinline)) void run(const KeyBlock<int8_t>& block, float* w, float* shrink, int64_t dim,
                                              float* out) {
        const int64_t count = block.count, stride = block.value_stride, fours = count / 4;
        for (int64_t i = 0; block.value_scale && i < count * ROWS; i += WIDTH) {
            store(w + i, mul(load(w + i), spread_scales<ROWS>(block.value_scale + i / ROWS, count - i / ROWS)));
        }
        alignas(ALIGNMENT) Weights bytes[AsBytes::KEYS / 4 * ROWS];
        float unit[ROWS];
        if (!split_weights<ROWS>(w, count, bytes, unit)) {
            Accumulate<AsFloats<int8_t>, ROWS>::run(block.values, stride, count, w, shrink, dim, out);
            return;
        }
        add(block.values, stride, fours, bytes, unit, shrink, dim, out);
        if (count % 4 == 0) return;
        alignas(ALIGNMENT) int8_t last[4 * LARGEST_DIM];
        copy_keys(block.values + fours * 4 * stride, stride, count % 4, 4, dim, last);
        for (int r = 0; r < ROWS; ++r) shrink[r] = 1.0f; // done
        add(last, dim, 1, bytes + fours * ROWS, unit, shrink, dim, out);
    }

private:
    static __attribute__((noinline)) void add(const int8_t* values, int64_t stride, int64_t fours, const Weights* w,
                                              const float* unit, const float* shrink, int64_t dim, float* out) {
        constexpr int AT_ONCE = ROWS < 2 ? ROWS : 2; // more sums than registers hold
        for (int r = 0; r < ROWS; r += AT_ONCE) {
            accumulate_bytes<ROWS, AT_ONCE>(values, stride, fours, w + r, unit + r, shrink + r, dim,
                                            out + r * padded(dim));
        }
    }
};

#endif

} // namespace dsmr::DSMR_ISA

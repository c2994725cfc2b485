// A matrix times vectors, by the arithmetic that suits its type. Of int8 that is bytes as they are times numbers of 24
// bits, as in decode_bytes.hpp: converting them takes longer than reading them.
#pragma once

#include "decode_bytes.hpp"
#include "matrix.hpp"

namespace dsmr::DSMR_ISA {

#ifdef __AVX512VNNI__

constexpr int64_t MOST_COLUMNS = 8192; // of vectors that find room on the stack
constexpr int BYTE_LANES = 2;          // vectors that one pass serves: more sums than registers hold otherwise

// A vector as bytes.
struct ByteVector {
    alignas(ALIGNMENT) int8_t limb[LIMBS][MOST_COLUMNS];
    Ints offset[LIMBS]; // what makes good for weights being 128 too large
    float unit;

    // False if it is not finite, too long, or of a size that floats have no reciprocal of.
    bool assign(const float* x, int64_t columns) {
        if (columns > MOST_COLUMNS) return false;
        const Unit made = unit_for(largest_magnitude(x, columns));
        if (!made.fits) return false;
        unit = made.value;
        for (int l = 0; l < LIMBS; ++l) offset[l] = broadcast_int(0);
        for (int64_t column = 0; column < columns; column += PANEL) {
            Bytes digits[LIMBS];
            split(x + column, broadcast(made.reciprocal), digits);
            for (int l = 0; l < LIMBS; ++l) {
                store_bytes(limb[l] + column, digits[l]);
                offset[l] = dot_bytes(offset[l], plus_128((Bytes)broadcast_int(0)), digits[l]);
            }
        }
        for (int l = 0; l < LIMBS; ++l) offset[l] = -offset[l];
        return true;
    }
};

// One row's dot products with `lanes` vectors; y[lane * y_stride]. Rows are read one after another: with so little to
// compute a matrix is one stream, and read a fifth faster than in turns of four rows.
template <int lanes>
DSMR_INLINE void dots(const int8_t* row, float scale, const ByteVector* x, int64_t columns, float* y,
                      int64_t y_stride) {
    Ints sums[lanes][2][LIMBS];
    for (int lane = 0; lane < lanes; ++lane) {
        for (int l = 0; l < LIMBS; ++l) sums[lane][0][l] = x[lane].offset[l], sums[lane][1][l] = broadcast_int(0);
    }
    const auto step = [&](int64_t column, int half) {
        fetch_ahead(row + column, PREFETCH);
        const Bytes weights = plus_128(load_bytes(row + column));
        for (int lane = 0; lane < lanes; ++lane) {
            for (int l = 0; l < LIMBS; ++l) {
                Ints& sum = sums[lane][half][l];
                sum = dot_bytes(sum, weights, load_bytes(x[lane].limb[l] + column));
            }
        }
    };
    int64_t column = 0;
    for (; column + 2 * PANEL <= columns; column += 2 * PANEL) step(column, 0), step(column + PANEL, 1);
    if (column < columns) step(column, 0);
    for (int lane = 0; lane < lanes; ++lane) {
        const auto& s = sums[lane];
        const Vec all = joined(s[0][2] + s[1][2], s[0][1] + s[1][1], s[0][0] + s[1][0]);
        y[lane * y_stride] = sum(all) * x[lane].unit * scale;
    }
}

template <int lanes>
static void multiply_bytes(const Matrix& matrix, Share rows, const ByteVector* x, float* y, int64_t y_stride) {
    const int8_t* const values = static_cast<const int8_t*>(matrix.values);
    const int64_t columns = matrix.columns;
    for (int64_t row = rows.start; row < rows.stop; ++row)
        dots<lanes>(values + row * columns, matrix.scales[row], x, columns, y + row, y_stride);
}

// As `multiply_typed`. A vector that cannot be bytes is multiplied as floats, whatever the others are.
static void multiply_bytes(const Matrix& matrix, Share rows, const float* x, int lanes, float* y, int64_t y_stride) {
    ByteVector vectors[BYTE_LANES];
    for (int lane = 0; lane < lanes;) {
        const auto from = [&](int i) { return x + (lane + i) * matrix.columns; };
        float* const to = y + lane * y_stride;
        if (!vectors[0].assign(from(0), matrix.columns)) {
            multiply_typed<int8_t>(matrix, rows, from(0), 1, to, y_stride);
            lane += 1;
        } else if (lane + 1 < lanes && vectors[1].assign(from(1), matrix.columns)) {
            multiply_bytes<2>(matrix, rows, vectors, to, y_stride);
            lane += 2;
        } else {
            multiply_bytes<1>(matrix, rows, vectors, to, y_stride);
            lane += 1;
        }
    }
}

#endif

// y[lane * y_stride + row] for the rows of a share; x holds `lanes` vectors of matrix.columns floats.
static void multiply(
        Type type, const Matrix& matrix, Share rows, const float* x, int lanes, float* y, int64_t y_stride) {
    switch (type) {
        case Type::float32: return multiply_typed<float>(matrix, rows, x, lanes, y, y_stride);
        case Type::bfloat16: return multiply_typed<bf16>(matrix, rows, x, lanes, y, y_stride);
#ifdef __AVX512VNNI__
        default: return multiply_bytes(matrix, rows, x, lanes, y, y_stride);
#else
        default: return multiply_typed<int8_t>(matrix, rows, x, lanes, y, y_stride);
#endif
    }
}

} // namespace dsmr::DSMR_ISA

// A matrix times one vector for each lane: every weight is read once, in the order in which it lies in memory.
#pragma once

#include <algorithm>

#include "simd.hpp"
#include "step.hpp"

namespace dsmr::DSMR_ISA {

constexpr int BLOCK = 4;  // rows whose sums run side by side; threads share a matrix by blocks of rows
constexpr int PAD = 64;  // rows are filled up with zeros to a multiple of so many elements
constexpr size_t PREFETCH = 8192;  // bytes ahead: the best of 2 to 16 KB on two Zen 4 cores
constexpr int MAX_LANES = 4;  // vectors that one pass over a block serves

// A thread's rows, or anything else that is shared out: the range [start, stop) of `count` things.
struct Share {
    int64_t start, stop;
};

DSMR_INLINE Share share(int64_t count, int thread, int threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

DSMR_INLINE Share share_rows(const Matrix& matrix, int thread, int threads) {
    const Share blocks = share((matrix.rows + BLOCK - 1) / BLOCK, thread, threads);
    return {blocks.start * BLOCK, std::min(blocks.stop * BLOCK, matrix.rows)};
}

// PAD elements that will be read soon, into the second-level cache: a row is over before the processor has noticed that
// it is read in order.
template <class T>
DSMR_INLINE void prefetch(const T* p) {
    for (size_t line = 0; line < PAD * sizeof(T) / 64; ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + 64 * line, 0, 2);
}

// Dot products of `rows` rows with `lanes` vectors; y[lane * y_stride + row].
template <class T, int rows, int lanes>
DSMR_INLINE void dots(
        const T* matrix, const float* scales, const float* x, int64_t columns, float* y, int64_t y_stride) {
    const int64_t block = BLOCK * columns, ahead = std::max<int64_t>(PREFETCH / (block * sizeof(T)), 1) * block;
    Vec sums[lanes][BLOCK][2];
    for (auto& lane : sums)
        for (auto& row : lane) row[0] = row[1] = broadcast(0);
    for (int64_t column = 0; column < columns; column += PAD) {
        for (int row = 0; row < rows; ++row) prefetch(matrix + row * columns + column + ahead);
        for (int step = 0; step < PAD / WIDTH; ++step) {
            const int64_t at = column + step * WIDTH;
            for (int row = 0; row < rows; ++row) {
                const Vec weight = load(matrix + row * columns + at);
                for (int lane = 0; lane < lanes; ++lane)
                    sums[lane][row][step % 2] = fma(weight, load(x + lane * columns + at), sums[lane][row][step % 2]);
            }
        }
    }
    for (int lane = 0; lane < lanes; ++lane) {
        float out[BLOCK];
        auto& s = sums[lane];
        sum4(add(s[0][0], s[0][1]), add(s[1][0], s[1][1]), add(s[2][0], s[2][1]), add(s[3][0], s[3][1]), out);
        for (int row = 0; row < rows; ++row) y[lane * y_stride + row] = scales ? out[row] * scales[row] : out[row];
    }
}

template <class T, int rows>
DSMR_INLINE void dots(
        const T* matrix, const float* scales, const float* x, int64_t columns, int lanes, float* y, int64_t y_stride) {
    for (int lane = 0; lane < lanes;) {
        const float* from = x + lane * columns;
        float* to = y + lane * y_stride;
        const int left = lanes - lane, now = left >= MAX_LANES ? MAX_LANES : left >= 2 ? 2 : 1;
        if (now == MAX_LANES)
            dots<T, rows, MAX_LANES>(matrix, scales, from, columns, to, y_stride);
        else if (now == 2)
            dots<T, rows, 2>(matrix, scales, from, columns, to, y_stride);
        else
            dots<T, rows, 1>(matrix, scales, from, columns, to, y_stride);
        lane += now;
    }
}

// y[lane * y_stride + row] for the rows of a share; x holds `lanes` vectors of matrix.columns floats.
template <class T>
static void multiply_typed(const Matrix& matrix, Share rows, const float* x, int lanes, float* y, int64_t y_stride) {
    const T* values = static_cast<const T*>(matrix.values);
    int64_t row = rows.start;
    const auto scales = [&] { return matrix.scales ? matrix.scales + row : nullptr; };
    for (; row + BLOCK <= rows.stop; row += BLOCK)
        dots<T, BLOCK>(values + row * matrix.columns, scales(), x, matrix.columns, lanes, y + row, y_stride);
    for (; row < rows.stop; ++row)
        dots<T, 1>(values + row * matrix.columns, scales(), x, matrix.columns, lanes, y + row, y_stride);
}

} // namespace dsmr::DSMR_ISA

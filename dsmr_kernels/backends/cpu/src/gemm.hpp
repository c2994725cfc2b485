// The one product that all others are: C[m][n] (+)= sum over k of A(m, k) B[k][n], with n along vectors and the
// elements of A broadcast from wherever they lie in memory.
#pragma once

#include "simd.hpp"

namespace dsmr::DSMR_ISA {

// How two operands multiply. A `Word` is an element of A and B: one float, or a pair of bf16 along k.
struct Single {
    using Word = float;
    using Register = Vec;
    static constexpr int VALUES = 1; // values a word holds
    DSMR_INLINE Register load_word(const Word* p) { return load(p); }
    DSMR_INLINE Register spread(Word x) { return broadcast(x); }
    DSMR_INLINE Vec multiply_add(Register a, Register b, Vec c) { return fma(a, b, c); }
};
#ifdef __AVX512BF16__
struct Paired {
    using Word = uint32_t;
    using Register = Pairs;
    static constexpr int VALUES = 2;
    DSMR_INLINE Register load_word(const Word* p) { return load_pairs(p); }
    DSMR_INLINE Register spread(Word x) { return broadcast_pairs(x); }
    DSMR_INLINE Vec multiply_add(Register a, Register b, Vec c) { return dot(c, a, b); }
};
#endif

enum class Layout {
    ROWS,    // A(m, k) = a[m * stride + k]
    COLUMNS, // A(m, k) = a[k * stride + m]
};

template <class Math, Layout LAYOUT, bool ADD, int ROWS, int VECS>
DSMR_INLINE void micro_kernel(const typename Math::Word* a, int64_t stride, const typename Math::Word* b, int64_t ldb,
                              int64_t depth, float* c, int64_t ldc, float* highest) {
    Vec sums[ROWS][VECS];
#pragma GCC unroll 32
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 32
        for (int n = 0; n < VECS; ++n) sums[m][n] = ADD ? load(c + m * ldc + n * WIDTH) : broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        typename Math::Register row[VECS];
#pragma GCC unroll 32
        for (int n = 0; n < VECS; ++n) row[n] = Math::load_word(b + n * WIDTH);
#pragma GCC unroll 32
        for (int m = 0; m < ROWS; ++m) {
            const auto x = Math::spread(LAYOUT == Layout::ROWS ? a[m * stride] : a[m]);
#pragma GCC unroll 32
            for (int n = 0; n < VECS; ++n) sums[m][n] = Math::multiply_add(x, row[n], sums[m][n]);
        }
        a += LAYOUT == Layout::ROWS ? 1 : stride;
        b += ldb;
    }
#pragma GCC unroll 32
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 32
        for (int n = 0; n < VECS; ++n) store(c + m * ldc + n * WIDTH, sums[m][n]);
    }
    if (ADD || !highest) return;
#pragma GCC unroll 32
    for (int n = 0; n < VECS; ++n) {
        Vec most = load(highest + n * WIDTH);
#pragma GCC unroll 32
        for (int m = 0; m < ROWS; ++m) most = max(most, sums[m][n]);
        store(highest + n * WIDTH, most);
    }
}

constexpr int next_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows > 2 ? 2 : 1; }

// `rows` rows of C, ROWS at a time and the rest by smaller kernels.
template <class Math, Layout LAYOUT, bool ADD, int ROWS, int VECS>
DSMR_INLINE void column_panel(int64_t rows, const typename Math::Word* a, int64_t stride, const typename Math::Word* b,
                              int64_t ldb, int64_t depth, float* c, int64_t ldc, float* highest) {
    const int64_t step = LAYOUT == Layout::ROWS ? stride : 1;
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * step, c += ROWS * ldc) {
        micro_kernel<Math, LAYOUT, ADD, ROWS, VECS>(a, stride, b, ldb, depth, c, ldc, highest);
    }
    if constexpr (ROWS > 1) {
        constexpr int FEWER = next_rows(ROWS);
        if (rows) column_panel<Math, LAYOUT, ADD, FEWER, VECS>(rows, a, stride, b, ldb, depth, c, ldc, highest);
    }
}

constexpr int rows_for(int vecs) { return ACCUMULATORS / vecs < 12 ? ACCUMULATORS / vecs : 12; }

// C [rows][columns], columns a multiple of WIDTH; `a` as LAYOUT says, b [depth][ldb], c [rows][ldc]. `highest`
// [columns], unless null, is raised to the largest of each column.
template <class Math, Layout LAYOUT, bool ADD, int VECS = KERNEL_VECS>
static __attribute__((noinline)) void gemm(int64_t rows, int64_t columns, const typename Math::Word* a, int64_t stride,
                                           const typename Math::Word* b, int64_t ldb, int64_t depth, float* c,
                                           int64_t ldc, float* highest = nullptr) {
    int64_t n = 0;
    for (; n + VECS * WIDTH <= columns; n += VECS * WIDTH) {
        column_panel<Math, LAYOUT, ADD, rows_for(VECS), VECS>(rows, a, stride, b + n, ldb, depth, c + n, ldc,
                                                              highest ? highest + n : nullptr);
    }
    if constexpr (VECS > 1) {
        if (n < columns) {
            gemm<Math, LAYOUT, ADD, VECS / 2>(rows, columns - n, a, stride, b + n, ldb, depth, c + n, ldc,
                                            highest ? highest + n : nullptr);
        }
    }
}

} // namespace dsmr::DSMR_ISA

// Rows of keys, values and queries, of whatever type they are stored in, as the operands that gemm.hpp multiplies.
#pragma once

#include "api.h"
#include "gemm.hpp"
#include "scratch.hpp"

namespace dsmr::DSMR_ISA {

// Consecutive rows of `dim` elements; `stride` counts elements.
struct Rows {
    const void* data;
    int64_t type, stride;
};

DSMR_INLINE int64_t element_bytes(int64_t type) {
    return type == DSMR_FP32 ? 4 : type == DSMR_BF16 || type == DSMR_FP16 ? 2 : 1;
}
DSMR_INLINE const void* at(const void* data, int64_t type, int64_t element) {
    return static_cast<const char*>(data) + element * element_bytes(type);
}
DSMR_INLINE void* at(void* data, int64_t type, int64_t element) {
    return static_cast<char*>(data) + element * element_bytes(type);
}
DSMR_INLINE Rows from_row(const Rows& rows, int64_t first) {
    return {at(rows.data, rows.type, first * rows.stride), rows.type, rows.stride};
}

// Asks for a row that will be read soon, so that it arrives while something else is computed. Any may be asked for.
DSMR_INLINE void fetch_row(const Rows& rows, int64_t row, int64_t dim) {
    const char* const first = static_cast<const char*>(from_row(rows, row).data);
    for (int64_t i = 0; i < dim * element_bytes(rows.type); i += 64) __builtin_prefetch(first + i, 0, 2);
}

// Calls use(p) with `data` as a pointer to its element type.
template <class Use>
DSMR_INLINE void with_type(const void* data, int64_t type, const Use& use) {
    switch (type) {
    case DSMR_FP32: return use(static_cast<const float*>(data));
    case DSMR_BF16: return use(static_cast<const bf16*>(data));
    case DSMR_FP16: return use(static_cast<const fp16*>(data));
    case DSMR_INT8: return use(static_cast<const int8_t*>(data));
    case DSMR_FP8: return use(static_cast<const fp8*>(data));
    }
}

// The first `count` of WIDTH elements, the others zero; nothing beyond them is read.
template <class T>
DSMR_INLINE Vec load_part(const T* p, int64_t count) {
    T padded[WIDTH] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load(padded);
}

// Is nothing in these rows infinite or NaN? Of what is finite, sums of x times 0 are 0.
template <class T>
DSMR_INLINE bool all_finite(const T* rows, int64_t stride, int64_t count, int64_t dim) {
    const Vec zero = broadcast(0.0f);
    Vec total[4] = {zero, zero, zero, zero};
    for (int64_t i = 0; i < count; ++i) {
        const T* const row = rows + i * stride;
        int64_t d = 0;
        for (; d + 4 * WIDTH <= dim; d += 4 * WIDTH) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) total[j] = fma(load(row + d + j * WIDTH), zero, total[j]);
        }
        for (; d + WIDTH <= dim; d += WIDTH) total[0] = fma(load(row + d), zero, total[0]);
        if (d < dim) total[1] = fma(load_part(row + d, dim - d), zero, total[1]);
    }
    return sum(add(add(total[0], total[1]), add(total[2], total[3]))) == 0.0f;
}
DSMR_INLINE bool all_finite(const int8_t*, int64_t, int64_t, int64_t) { return true; }
// The same of rows with `count` scales, or null.
template <class T>
DSMR_INLINE bool all_finite(const T* rows, int64_t stride, const float* scales, int64_t count, int64_t dim) {
    return all_finite(rows, stride, count, dim) && (!scales || all_finite(scales, 0, 1, count));
}
DSMR_INLINE bool all_finite(const Rows& rows, const float* scales, int64_t count, int64_t dim) {
    bool finite = true;
    with_type(rows.data, rows.type, [&](auto* p) { finite = all_finite(p, rows.stride, scales, count, dim); });
    return finite;
}

// `dim` elements times `factor` as floats or bf16, then zeros up to `pitch`, a multiple of WIDTH.
template <class From, class To>
DSMR_INLINE void copy_row(const From* from, int64_t dim, float factor, To* to, int64_t pitch) {
    const Vec f = broadcast(factor);
    int64_t d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) store(to + d, mul(load(from + d), f));
    if (d < dim) store(to + d, mul(load_part(from + d, dim - d), f)), d += WIDTH;
    for (; d < pitch; d += WIDTH) store(to + d, broadcast(0.0f));
}

// `dim` floats times `factor` as elements of a type that queries have.
DSMR_INLINE void store_row(const float* row, int64_t dim, void* to, int64_t type, float factor = 1.0f) {
    const Vec f = broadcast(factor);
    const auto convert = [&](auto* p) {
        int64_t d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) store(p + d, mul(load(row + d), f));
        for (; d < dim; ++d) from_float(row[d] * factor, p + d);
    };
    switch (type) {
    case DSMR_FP32: return convert(static_cast<float*>(to));
    case DSMR_BF16: return convert(static_cast<bf16*>(to));
    case DSMR_FP16: return convert(static_cast<fp16*>(to));
    }
}

constexpr int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; } // a multiple of every WIDTH

// Row i and row i + WIDTH / 2 zipped, for all i and as often as WIDTH can be halved: WIDTH x WIDTH words transposed.
DSMR_INLINE void transpose(Vec (&rows)[WIDTH]) {
    Vec zipped[WIDTH];
#pragma GCC unroll 4
    for (int step = 1; step < WIDTH; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < WIDTH / 2; ++i) zip(rows[i], rows[i + WIDTH / 2], zipped[2 * i], zipped[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i) rows[i] = zipped[i];
    }
}

// to[column][to_pitch] = from[row][pitch], for numbers of rows and columns that are multiples of WIDTH.
DSMR_INLINE void transpose(const float* from, int64_t pitch, int64_t rows, int64_t columns, float* to,
                           int64_t to_pitch) {
    for (int64_t row = 0; row < rows; row += WIDTH) {
        for (int64_t column = 0; column < columns; column += WIDTH) {
            Vec square[WIDTH];
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i) square[i] = load(from + (row + i) * pitch + column);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i) store(to + (column + i) * to_pitch + row, square[i]);
        }
    }
}

template <class Word>
struct Operand {
    const Word* data;
    int64_t stride;
};

// Arithmetic in float: rows that are stored as float are used where they lie.
struct SingleOperands : Single {
    DSMR_INLINE int64_t words(int64_t dim) { return dim; }
    // Scratch space for the operands of `count` rows, in words: of both kinds, and what the second needs in addition.
    DSMR_INLINE int64_t room(int64_t count, int64_t dim) { return count * padded(dim); }
    DSMR_INLINE int64_t pair_room(int64_t, int64_t) { return 0; }

    // Copies one row, times `factor`, to row `index` of a packed table.
    DSMR_INLINE void pack_row(const void* row, int64_t type, int64_t dim, float factor, float* table, int64_t index) {
        with_type(row, type, [&](auto* p) { copy_row(p, dim, factor, table + index * padded(dim), padded(dim)); });
    }
    DSMR_INLINE int64_t packed_stride(int64_t dim) { return padded(dim); }
    // queries[d][row] of a packed table [rows]
    DSMR_INLINE void turn(const float* table, int64_t rows, int64_t dim, float* to) {
        transpose(table, packed_stride(dim), rows, packed_stride(dim), to, rows);
    }

    // A(key, d), to multiply from the left along d.
    DSMR_INLINE Operand<float> along_dim(const Rows& rows, int64_t count, int64_t dim, float* room) {
        if (rows.type == DSMR_FP32) return {static_cast<const float*>(rows.data), rows.stride};
        with_type(rows.data, rows.type, [&](auto* p) {
            for (int64_t i = 0; i < count; ++i) {
                copy_row(p + i * rows.stride, dim, 1.0f, room + i * padded(dim), padded(dim));
            }
        });
        return {room, padded(dim)};
    }
    // A(d, key), to multiply from the left along the keys: here the same words. `made` is along_dim's result if it was
    // asked for the same rows.
    DSMR_INLINE Operand<float> along_keys(const Operand<float>& made, int64_t, int64_t, float*) { return made; }
    DSMR_INLINE int64_t key_words(int64_t count) { return count; }

    // B[row][d]: a packed table [rows], to multiply from the right along the rows.
    DSMR_INLINE int64_t row_room(int64_t, int64_t) { return 0; }
    DSMR_INLINE const float* along_rows(const Operand<float>& table, int64_t, int64_t, float*) { return table.data; }
    // A(key, row): x [keys][rows], to multiply from the left along the rows.
    DSMR_INLINE const float* pack_rows(const float* x, int64_t, int64_t, float*) { return x; }
    // The number of a key and row in B[key][row], to multiply from the right along the keys.
    DSMR_INLINE float key_value(const float* words, int64_t rows, int64_t key, int64_t row) {
        return words[key * rows + row];
    }
};

#ifdef __AVX512BF16__
// Arithmetic in pairs of bf16 with float sums. int8 and fp8 values are bf16 values, too: converting loses nothing.
struct PairedOperands : Paired {
    DSMR_INLINE int64_t words(int64_t dim) { return (dim + 1) / 2; }
    DSMR_INLINE int64_t room(int64_t count, int64_t dim) { return count * packed_stride(dim); }
    DSMR_INLINE int64_t pair_room(int64_t count, int64_t dim) { return (count + 1) / 2 * dim; }

    DSMR_INLINE void pack_row(const void* row, int64_t type, int64_t dim, float factor, uint32_t* table,
                              int64_t index) {
        bf16* const to = reinterpret_cast<bf16*>(table + index * packed_stride(dim));
        with_type(row, type, [&](auto* p) { copy_row(p, dim, factor, to, 2 * packed_stride(dim)); });
    }
    DSMR_INLINE int64_t packed_stride(int64_t dim) { return padded(words(dim)); }
    DSMR_INLINE void turn(const uint32_t* table, int64_t rows, int64_t dim, uint32_t* to) {
        transpose(reinterpret_cast<const float*>(table), packed_stride(dim), rows, packed_stride(dim),
                  reinterpret_cast<float*>(to), rows);
    }

    DSMR_INLINE Operand<uint32_t> along_dim(const Rows& rows, int64_t count, int64_t dim, uint32_t* room) {
        const bool whole_words = (dim | rows.stride) % 2 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 4 == 0;
        if (rows.type == DSMR_BF16 && whole_words) return {static_cast<const uint32_t*>(rows.data), rows.stride / 2};
        for (int64_t i = 0; i < count; ++i) pack_row(from_row(rows, i).data, rows.type, dim, 1.0f, room, i);
        return {room, packed_stride(dim)};
    }
    // Two rows side by side: word d of row pair i holds element d of the rows 2 i and 2 i + 1.
    DSMR_INLINE Operand<uint32_t> along_keys(const Operand<uint32_t>& made, int64_t count, int64_t dim,
                                             uint32_t* room) {
        interleave(made, count, dim, room, dim);
        return {room, dim};
    }
    DSMR_INLINE int64_t key_words(int64_t count) { return (count + 1) / 2; }

    DSMR_INLINE int64_t row_room(int64_t rows, int64_t dim) { return rows / 2 * padded(dim); }
    DSMR_INLINE const uint32_t* along_rows(const Operand<uint32_t>& table, int64_t rows, int64_t dim,
                                            uint32_t* room) {
        interleave(table, rows, padded(dim), room, padded(dim));
        return room;
    }
    DSMR_INLINE const uint32_t* pack_rows(const float* x, int64_t count, int64_t rows, uint32_t* room) {
        bf16* const to = reinterpret_cast<bf16*>(room);
        for (int64_t i = 0; i < count * rows; i += WIDTH) store(to + i, load(x + i));
        return room;
    }
    DSMR_INLINE float key_value(const uint32_t* words, int64_t rows, int64_t key, int64_t row) {
        return to_float(bf16{uint16_t(words[key / 2 * rows + row] >> key % 2 * 16)});
    }

    static __attribute__((noinline)) void interleave(const Operand<uint32_t>& rows, int64_t count, int64_t dim,
                                                     uint32_t* to, int64_t pitch) {
        for (int64_t i = 0; i < count; i += 2, to += pitch) {
            const uint16_t* const even = reinterpret_cast<const uint16_t*>(rows.data + i * rows.stride);
            const uint16_t* const odd = i + 1 < count ? even + 2 * rows.stride : nullptr;
            int64_t d = 0;
            if (!odd) {
                for (; d < dim; ++d) to[d] = even[d];
                continue;
            }
            for (; d + 2 * WIDTH <= dim; d += 2 * WIDTH) dsmr::DSMR_ISA::interleave(even + d, odd + d, to + d);
            for (; d < dim; ++d) to[d] = even[d] | uint32_t(odd[d]) << 16;
        }
    }
};
#endif

} // namespace dsmr::DSMR_ISA

// The backward pass of one tile: every block's weights are computed anew from the saved lse. Three products for a block
// of the memory, which gets no gradient (logits, gradient of the weights, dq), five for a block of the segment.
#pragma once

#include "partial.hpp"

namespace dsmr::DSMR_ISA {

// Sums of dk / scale and dv over tiles: [tokens][padded dim] of one lane, one KV head and one share of the tiles.
struct KeyGradients {
    float *dk, *dv;
};

template <class Math, int ROWS>
class BackwardTile {
    using Word = typename Math::Word;

public:
    static std::size_t scratch_bytes(int64_t dim) {
        const int64_t operands = 2 * Math::room(BLOCK_KEYS, dim) + Math::pair_room(BLOCK_KEYS, dim);
        const int64_t words = (6 * padded(dim) + 2 * BLOCK_KEYS) * ROWS + operands;
        return (words + (3 * BLOCK_KEYS + padded(dim) + 2) * ROWS + 2 * padded(dim)) * 4 + 32 * ALIGNMENT;
    }

    BackwardTile(const DsmrCall& call, const Lane& lane, const Tile& tile, const KeyGradients& sums, Scratch& scratch)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), sums_(sums), dim_(call.dim) {
        const int64_t packed = Math::packed_stride(dim_) * ROWS;
        query_rows_ = scratch.take<Word>(packed);
        grad_rows_ = scratch.take<Word>(packed);
        queries_ = scratch.take<Word>(packed);
        grads_ = scratch.take<Word>(packed);
        key_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        value_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        pair_room_ = scratch.take<Word>(Math::pair_room(BLOCK_KEYS, dim_));
        factors_ = scratch.take<Word>(BLOCK_KEYS * ROWS);
        logits_ = scratch.take<float>(BLOCK_KEYS * ROWS);
        changes_ = scratch.take<float>(BLOCK_KEYS * ROWS);
        cap_slope_ = scratch.take<float>(BLOCK_KEYS * ROWS);
        dq_ = scratch.take<float>(padded(dim_) * ROWS);
        lse_ = scratch.take<float>(ROWS);
        delta_ = scratch.take<float>(ROWS);
        query_room_ = scratch.take<Word>(Math::row_room(ROWS, dim_));
        grad_room_ = scratch.take<Word>(Math::row_room(ROWS, dim_));
        row_ = scratch.take<float>(2 * padded(dim_));
    }

    void run() {
        start();
        const auto use = [&](const Block& block) { attend(block); };
        if (call_.dq) for_each_memory_block(call_, lane_, tile_, 0, entries_of(lane_), BLOCK_KEYS, use);
        for_each_segment_block(call_, tile_, BLOCK_KEYS, use);
        if (call_.dq) finish();
    }

private:
    void start() {
        const int64_t stride = Math::packed_stride(dim_);
        std::memset(query_rows_, 0, stride * ROWS * sizeof(Word));
        std::memset(grad_rows_, 0, stride * ROWS * sizeof(Word));
        for (int64_t r = 0; r < tile_.rows; ++r) {
            const void* const query = row_data(tile_, call_, call_.q, r);
            const void* const grad = row_data(tile_, call_, call_.grad_o, r);
            Math::pack_row(query, call_.type, dim_, rule_.sign, query_rows_, r);
            Math::pack_row(grad, call_.type, dim_, 1.0f, grad_rows_, r);
            const int64_t i = lse_offset(tile_, call_, r);
            lse_[r] = call_.lse[i] == HIDDEN ? -HIDDEN : call_.lse[i] * LOG2E; // a row that sees nothing: weights of 0
            delta_[r] = product(grad, at(call_.o, call_.type, row_offset(tile_, call_, r))) - call_.grad_lse[i];
        }
        for (int64_t r = tile_.rows; r < ROWS; ++r) lse_[r] = -HIDDEN, delta_[r] = 0.0f;
        Math::turn(query_rows_, ROWS, dim_, queries_);
        Math::turn(grad_rows_, ROWS, dim_, grads_);
        if (call_.dk) {
            set_odd_rows_apart();
            query_table_ = Math::along_rows({query_rows_, stride}, ROWS, dim_, query_room_);
            grad_table_ = Math::along_rows({grad_rows_, stride}, ROWS, dim_, grad_room_);
        }
        for (int64_t i = 0; i < padded(dim_) * ROWS; i += WIDTH) store(dq_ + i, broadcast(0.0f));
    }

    // Rows that are not finite go to keys one by one: in a product, they would reach keys that do not see them.
    void set_odd_rows_apart() {
        const int64_t stride = Math::packed_stride(dim_);
        for (int64_t r = 0; r < tile_.rows; ++r) {
            const void* const query = row_data(tile_, call_, call_.q, r);
            const void* const grad = row_data(tile_, call_, call_.grad_o, r);
            const auto is_finite = [&](const void* row) { return all_finite({row, call_.type, 0}, nullptr, 1, dim_); };
            if (is_finite(query) && is_finite(grad)) continue;
            std::memset(query_rows_ + r * stride, 0, stride * sizeof(Word));
            std::memset(grad_rows_ + r * stride, 0, stride * sizeof(Word));
            odd_row_[odd_rows_++] = r;
        }
    }

    float product(const void* a, const void* b) {
        float *const x = row_, *const y = row_ + padded(dim_);
        with_type(a, call_.type, [&](auto* p) { copy_row(p, dim_, 1.0f, x, padded(dim_)); });
        with_type(b, call_.type, [&](auto* p) { copy_row(p, dim_, 1.0f, y, padded(dim_)); });
        Vec total = broadcast(0.0f);
        for (int64_t d = 0; d < padded(dim_); d += WIDTH) total = fma(load(x + d), load(y + d), total);
        return sum(total);
    }

    void attend(const Block& block) {
        const bool wants_keys = !block.run && call_.dk;
        const auto keys = Math::along_dim(block.keys, block.count, dim_, key_room_);
        const auto values = Math::along_dim(block.values, block.count, dim_, value_room_);
        const int64_t words = Math::words(dim_);
        gemm<Math, Layout::ROWS, false, VECS>(block.count, ROWS, keys.data, keys.stride, queries_, ROWS, words,
                                              logits_, ROWS);
        gemm<Math, Layout::ROWS, false, VECS>(block.count, ROWS, values.data, values.stride, grads_, ROWS, words,
                                              changes_, ROWS);
        float factor = rule_.factor;
        scale_keys<ROWS>(block.key_scale, block.count, logits_);
        if (!is_plain(rule_, block)) {
            factor = prepare_logits<ROWS>(call_, lane_, tile_, rule_, block, 0, logits_, cap_slope_);
        }
        const bool mixed = is_mixed(block, block.keys, block.key_scale, dim_);
        differentiate(block, factor, wants_keys, mixed ? nullptr : block.key_scale);
        if (call_.dq && mixed) {
            add_seen<Math, ROWS>(block.keys, block.key_scale, block.count, dim_, factors_, dq_);
        } else if (call_.dq) {
            const auto columns = Math::along_keys(keys, block.count, dim_, pair_room_);
            gemm<Math, Layout::COLUMNS, true, VECS>(dim_, ROWS, columns.data, columns.stride, factors_, ROWS,
                                                    Math::key_words(block.count), dq_, ROWS);
        }
        if (wants_keys) add_to_keys(block);
    }

    // Logits become weights, and gradients of the weights become those of the products (without their factor), times
    // `key_scales` unless null, as an operand along the keys; `keep` leaves both as floats, too. Of hidden pairs all are
    // 0, whatever the row or the key holds.
    void differentiate(const Block& block, float factor, bool keep, const float* key_scales) {
        const bool keys_scaled = key_scales != nullptr, values_scaled = block.value_scale != nullptr;
        const bool masked = block.masked;
        const Vec f = broadcast(factor), zero = broadcast(0.0f), lowest = broadcast(LOWEST);
        float *const s = logits_, *const c = changes_;
        const float* const cap = rule_.capped ? cap_slope_ : nullptr;
        for (int row = 0; row < ROWS; row += VECS * WIDTH) {
            Vec minus_lse[VECS], delta[VECS];
            for (int j = 0; j < VECS; ++j) {
                minus_lse[j] = sub(zero, load(lse_ + row + j * WIDTH));
                delta[j] = load(delta_ + row + j * WIDTH);
            }
            const auto change_at = [&](int64_t k, int j, Vec key_scale, Vec value_scale) {
                const int64_t i = k * ROWS + row + j * WIDTH;
                const Vec logit = load(s + i);
                Vec weight = weight_of<Math::VALUES>(logit, f, minus_lse[j]);
                const Vec grad = values_scaled ? mul(load(c + i), value_scale) : load(c + i);
                Vec change = mul(weight, sub(grad, delta[j]));
                if (cap) change = mul(change, load(cap + i));
                if (masked) {
                    weight = select_less(logit, lowest, zero, weight);
                    change = select_less(logit, lowest, zero, change);
                }
                if (keep) {
                    store(s + i, weight);
                    store(c + i, change);
                }
                return keys_scaled ? mul(change, key_scale) : change;
            };
            const auto scale_of = [&](const float* scales, int64_t k) { return broadcast(scales ? scales[k] : 1.0f); };
            Word* operand = factors_ + row;
            for (int64_t k = 0; k < block.count; k += Math::VALUES, operand += ROWS) {
                const Vec key_scale = scale_of(key_scales, k), value_scale = scale_of(block.value_scale, k);
                if constexpr (Math::VALUES == 1) {
#pragma GCC unroll 4
                    for (int j = 0; j < VECS; ++j) {
                        store(operand + j * WIDTH, change_at(k, j, key_scale, value_scale));
                    }
                } else {
#ifdef __AVX512BF16__
                    const bool both = k + 1 < block.count;
                    const Vec next_key = both ? scale_of(key_scales, k + 1) : zero;
                    const Vec next_value = both ? scale_of(block.value_scale, k + 1) : zero;
#pragma GCC unroll 4
                    for (int j = 0; j < VECS; ++j) {
                        const Vec even = change_at(k, j, key_scale, value_scale);
                        const Vec odd = both ? change_at(k + 1, j, next_key, next_value) : zero;
                        store_pairs(operand + j * WIDTH, make_pairs(even, odd));
                    }
#endif
                }
            }
        }
    }

    // dv += weights x grads, dk / scale += changes x queries, summed over the rows of this tile.
    void add_to_keys(const Block& block) {
        const int64_t pitch = padded(dim_), words = ROWS / Math::VALUES;
        const Word* const weights = Math::pack_rows(logits_, block.count, ROWS, factors_);
        gemm<Math, Layout::ROWS, true>(block.count, pitch, weights, words, grad_table_, pitch, words,
                                       sums_.dv + block.first * pitch, pitch);
        const Word* const changes = Math::pack_rows(changes_, block.count, ROWS, factors_);
        gemm<Math, Layout::ROWS, true>(block.count, pitch, changes, words, query_table_, pitch, words,
                                       sums_.dk + block.first * pitch, pitch);
        for (int i = 0; i < odd_rows_; ++i) add_odd_row(block, odd_row_[i]);
    }

    void add_odd_row(const Block& block, int64_t r) {
        float *const query = row_, *const grad = row_ + padded(dim_);
        const void* const q = row_data(tile_, call_, call_.q, r);
        const void* const g = row_data(tile_, call_, call_.grad_o, r);
        with_type(q, call_.type, [&](auto* p) { copy_row(p, dim_, rule_.sign, query, padded(dim_)); });
        with_type(g, call_.type, [&](auto* p) { copy_row(p, dim_, 1.0f, grad, padded(dim_)); });
        for (int64_t k = 0; k < block.count; ++k) {
            const float weight = logits_[k * ROWS + r], change = changes_[k * ROWS + r];
            float* const dv = sums_.dv + (block.first + k) * padded(dim_);
            float* const dk = sums_.dk + (block.first + k) * padded(dim_);
            for (int64_t d = 0; weight != 0 && d < dim_; ++d) dv[d] += weight * grad[d];
            for (int64_t d = 0; change != 0 && d < dim_; ++d) dk[d] += change * query[d];
        }
    }

    void finish() {
        float scale[ROWS];
        for (int r = 0; r < ROWS; ++r) scale[r] = float(call_.scale);
        store_rows<ROWS>(dq_, scale, call_, tile_, call_.dq);
    }

    static constexpr int VECS = ROWS / WIDTH < KERNEL_VECS ? ROWS / WIDTH : KERNEL_VECS;
    const DsmrCall& call_;
    const Lane& lane_;
    const Tile& tile_;
    const LogitRule rule_;
    const KeyGradients sums_;
    const int64_t dim_;
    Word *query_rows_, *grad_rows_, *queries_, *grads_, *key_room_, *value_room_, *pair_room_, *factors_;
    Word *query_room_, *grad_room_;
    const Word *query_table_, *grad_table_;
    float *logits_, *changes_, *cap_slope_, *dq_, *lse_, *delta_, *row_;
    int odd_rows_ = 0;
    int64_t odd_row_[ROWS];
};

} // namespace dsmr::DSMR_ISA

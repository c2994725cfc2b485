// The backward pass of one tile: every block's weights are computed anew from the saved lse. Three products for a block
// of the memory, which gets no gradient (logits, gradient of the weights, dq), five for a block of the segment.
#pragma once

#include "partial.hpp"

namespace dsmr::DSMR_ISA {

// Sums of dk / scale and dv over tiles: [tokens][padded dim] of one lane, one KV head and one share of the tiles.
struct KeyGradients {
    float *dk, *dv;
};

template <class Math, int LANES>
class BackwardTile {
    using Word = typename Math::Word;

public:
    static std::size_t scratch_bytes(int64_t dim) {
        const int64_t operands = 2 * Math::room(BLOCK_KEYS, dim) + Math::pair_room(BLOCK_KEYS, dim);
        const int64_t words = (6 * padded(dim) + 2 * BLOCK_KEYS) * LANES + operands;
        return (words + (3 * BLOCK_KEYS + padded(dim) + 2) * LANES + 2 * padded(dim)) * 4 + 32 * ALIGNMENT;
    }

    BackwardTile(const DsmrCall& call, const Lane& lane, const Tile& tile, const KeyGradients& sums, Scratch& scratch)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), sums_(sums), dim_(call.dim) {
        const int64_t packed = Math::packed_stride(dim_) * LANES;
        query_rows_ = scratch.take<Word>(packed);
        grad_rows_ = scratch.take<Word>(packed);
        queries_ = scratch.take<Word>(packed);
        grads_ = scratch.take<Word>(packed);
        key_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        value_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        pair_room_ = scratch.take<Word>(Math::pair_room(BLOCK_KEYS, dim_));
        factors_ = scratch.take<Word>(BLOCK_KEYS * LANES);
        logits_ = scratch.take<float>(BLOCK_KEYS * LANES);
        changes_ = scratch.take<float>(BLOCK_KEYS * LANES);
        cap_slope_ = scratch.take<float>(BLOCK_KEYS * LANES);
        dq_ = scratch.take<float>(padded(dim_) * LANES);
        lse_ = scratch.take<float>(LANES);
        delta_ = scratch.take<float>(LANES);
        query_room_ = scratch.take<Word>(Math::lane_room(LANES, dim_));
        grad_room_ = scratch.take<Word>(Math::lane_room(LANES, dim_));
        row_ = scratch.take<float>(2 * padded(dim_));
    }

    void run() {
        start();
        if (call_.dq) for_each_memory_block(call_, lane_, tile_, [&](const Block& block) { attend(block); });
        for_each_segment_block(call_, tile_, [&](const Block& block) { attend(block); });
        if (call_.dq) finish();
    }

private:
    void start() {
        const int64_t stride = Math::packed_stride(dim_);
        std::memset(query_rows_, 0, stride * LANES * sizeof(Word));
        std::memset(grad_rows_, 0, stride * LANES * sizeof(Word));
        for (int64_t r = 0; r < tile_.rows; ++r) {
            const void* const query = at(call_.q.data, call_.type, row_offset(tile_, call_.q, r));
            const void* const grad = at(call_.grad_o.data, call_.type, row_offset(tile_, call_.grad_o, r));
            Math::pack_row(query, call_.type, dim_, rule_.sign, query_rows_, r);
            Math::pack_row(grad, call_.type, dim_, 1.0f, grad_rows_, r);
            const int64_t i = lse_offset(tile_, call_, r);
            lse_[r] = call_.lse[i] == HIDDEN ? -HIDDEN : call_.lse[i] * LOG2E; // a row that sees nothing: weights of 0
            delta_[r] = product(grad, at(call_.o, call_.type, row_offset(tile_, call_, r))) - call_.grad_lse[i];
        }
        for (int64_t r = tile_.rows; r < LANES; ++r) lse_[r] = -HIDDEN, delta_[r] = 0.0f;
        Math::turn(query_rows_, LANES, dim_, queries_);
        Math::turn(grad_rows_, LANES, dim_, grads_);
        if (call_.dk) {
            set_odd_rows_apart();
            query_table_ = Math::along_lanes({query_rows_, stride}, LANES, dim_, query_room_);
            grad_table_ = Math::along_lanes({grad_rows_, stride}, LANES, dim_, grad_room_);
        }
        for (int64_t i = 0; i < padded(dim_) * LANES; i += WIDTH) store(dq_ + i, broadcast(0.0f));
    }

    // Rows that are not finite go to keys one by one: in a product, they would reach keys that do not see them.
    void set_odd_rows_apart() {
        const int64_t stride = Math::packed_stride(dim_);
        for (int64_t r = 0; r < tile_.rows; ++r) {
            const void* const query = at(call_.q.data, call_.type, row_offset(tile_, call_.q, r));
            const void* const grad = at(call_.grad_o.data, call_.type, row_offset(tile_, call_.grad_o, r));
            if (all_finite({query, call_.type, 0}, 1, dim_) && all_finite({grad, call_.type, 0}, 1, dim_)) continue;
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
        gemm<Math, Layout::ROWS, false, VECS>(block.count, LANES, keys.data, keys.stride, queries_, LANES, words,
                                              logits_, LANES);
        gemm<Math, Layout::ROWS, false, VECS>(block.count, LANES, values.data, values.stride, grads_, LANES, words,
                                              changes_, LANES);
        float factor = rule_.factor;
        if (!is_plain(rule_, block)) {
            factor = prepare_logits<LANES>(call_, lane_, tile_, rule_, block, logits_, cap_slope_);
        }
        const bool mixed = is_mixed(block, block.keys, block.key_scale, dim_);
        differentiate(block, factor, wants_keys, mixed ? nullptr : block.key_scale);
        if (call_.dq && mixed) {
            add_seen<Math, LANES>(block.keys, block.key_scale, block.count, dim_, factors_, dq_);
        } else if (call_.dq) {
            const auto columns = Math::along_keys(keys, block.count, dim_, pair_room_);
            gemm<Math, Layout::COLUMNS, true, VECS>(dim_, LANES, columns.data, columns.stride, factors_, LANES,
                                                    Math::key_words(block.count), dq_, LANES);
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
        for (int lane = 0; lane < LANES; lane += VECS * WIDTH) {
            Vec minus_lse[VECS], delta[VECS];
            for (int j = 0; j < VECS; ++j) {
                minus_lse[j] = sub(zero, load(lse_ + lane + j * WIDTH));
                delta[j] = load(delta_ + lane + j * WIDTH);
            }
            const auto change_at = [&](int64_t k, int j, Vec key_scale, Vec value_scale) {
                const int64_t i = k * LANES + lane + j * WIDTH;
                const Vec logit = load(s + i), exponent = fma(logit, f, minus_lse[j]);
                Vec weight = Math::VALUES == 1 ? exp2(exponent) : exp2_rough(exponent);
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
            Word* operand = factors_ + lane;
            for (int64_t k = 0; k < block.count; k += Math::VALUES, operand += LANES) {
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
        const int64_t pitch = padded(dim_), words = LANES / Math::VALUES;
        const Word* const weights = Math::pack_lanes(logits_, block.count, LANES, factors_);
        gemm<Math, Layout::ROWS, true>(block.count, pitch, weights, words, grad_table_, pitch, words,
                                       sums_.dv + block.first * pitch, pitch);
        const Word* const changes = Math::pack_lanes(changes_, block.count, LANES, factors_);
        gemm<Math, Layout::ROWS, true>(block.count, pitch, changes, words, query_table_, pitch, words,
                                       sums_.dk + block.first * pitch, pitch);
        for (int i = 0; i < odd_rows_; ++i) add_odd_row(block, odd_row_[i]);
    }

    void add_odd_row(const Block& block, int64_t r) {
        float *const query = row_, *const grad = row_ + padded(dim_);
        const void* const q = at(call_.q.data, call_.type, row_offset(tile_, call_.q, r));
        const void* const g = at(call_.grad_o.data, call_.type, row_offset(tile_, call_.grad_o, r));
        with_type(q, call_.type, [&](auto* p) { copy_row(p, dim_, rule_.sign, query, padded(dim_)); });
        with_type(g, call_.type, [&](auto* p) { copy_row(p, dim_, 1.0f, grad, padded(dim_)); });
        for (int64_t k = 0; k < block.count; ++k) {
            const float weight = logits_[k * LANES + r], change = changes_[k * LANES + r];
            float* const dv = sums_.dv + (block.first + k) * padded(dim_);
            float* const dk = sums_.dk + (block.first + k) * padded(dim_);
            for (int64_t d = 0; weight != 0 && d < dim_; ++d) dv[d] += weight * grad[d];
            for (int64_t d = 0; change != 0 && d < dim_; ++d) dk[d] += change * query[d];
        }
    }

    void finish() {
        float scale[LANES];
        for (int r = 0; r < LANES; ++r) scale[r] = float(call_.scale);
        store_lanes<LANES>(dq_, scale, call_, tile_, call_.dq);
    }

    static constexpr int VECS = LANES / WIDTH < TILE_VECS ? LANES / WIDTH : TILE_VECS;
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
    int64_t odd_row_[LANES];
};

} // namespace dsmr::DSMR_ISA

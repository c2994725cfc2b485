// The forward pass of one tile: an online softmax over its blocks of keys (Dao et al. 2022, "FlashAttention"), with
// queries side by side in vectors. No score matrix is ever whole, and keys and values are read where they lie.
#pragma once

#include "partial.hpp"

namespace dsmr::DSMR_ISA {

// How far logits may exceed what weights are measured from, in powers of two: numbers that grow cost nothing in
// precision, and raising the base costs a pass over the output. What a row does depends on no other row.
constexpr float SLACK = 8.0f;

template <class Math, int ROWS>
class ForwardTile {
    using Word = typename Math::Word;

public:
    static std::size_t scratch_bytes(int64_t dim) {
        const int64_t operands = 2 * Math::room(BLOCK_KEYS, dim) + Math::pair_room(BLOCK_KEYS, dim);
        const int64_t words = (2 * Math::packed_stride(dim) + BLOCK_KEYS) * ROWS + operands;
        return (words + (BLOCK_KEYS + padded(dim) + 5) * ROWS) * 4 + 16 * ALIGNMENT;
    }

    ForwardTile(const DsmrCall& call, const Lane& lane, const Tile& tile, Scratch& scratch)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), dim_(call.dim) {
        queries_ = scratch.take<Word>(Math::packed_stride(dim_) * ROWS);
        key_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        value_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        pair_room_ = scratch.take<Word>(Math::pair_room(BLOCK_KEYS, dim_));
        weights_ = scratch.take<Word>(BLOCK_KEYS * ROWS);
        logits_ = scratch.take<float>(BLOCK_KEYS * ROWS);
        out_ = scratch.take<float>(padded(dim_) * ROWS);
        highest_ = scratch.take<float>(ROWS);
        base_ = scratch.take<float>(ROWS);
        minus_base_ = scratch.take<float>(ROWS);
        total_ = scratch.take<float>(ROWS);
        shrink_ = scratch.take<float>(ROWS);
        packed_ = scratch.take<Word>(Math::packed_stride(dim_) * ROWS);
    }

    void run() {
        start();
        const auto use = [&](const Block& block) { attend(block); };
        for_each_memory_block(call_, lane_, tile_, 0, entries_of(lane_), BLOCK_KEYS, use);
        for_each_segment_block(call_, tile_, BLOCK_KEYS, use);
        finish();
    }

private:
    void start() {
        const auto query = [&](int64_t r) { return row_data(tile_, call_, call_.q, r); };
        for (int64_t r = 0; r < tile_.rows; ++r) fetch_row({query(r), call_.type, 0}, 0, dim_);
        for (int64_t i = 0; i < padded(dim_) * ROWS; i += WIDTH) store(out_ + i, broadcast(0.0f));
        for (int r = 0; r < ROWS; ++r) base_[r] = HIDDEN, total_[r] = 0.0f;
        std::memset(packed_, 0, Math::packed_stride(dim_) * ROWS * sizeof(Word));
        for (int64_t r = 0; r < tile_.rows; ++r) Math::pack_row(query(r), call_.type, dim_, rule_.sign, packed_, r);
        Math::turn(packed_, ROWS, dim_, queries_);
    }

    void attend(const Block& block) {
        const auto keys = Math::along_dim(block.keys, block.count, dim_, key_room_);
        const bool plain = is_plain(rule_, block) && !block.key_scale;
        for (int r = 0; r < ROWS; ++r) highest_[r] = HIDDEN;
        gemm<Math, Layout::ROWS, false, VECS>(block.count, ROWS, keys.data, keys.stride, queries_, ROWS,
                                              Math::words(dim_), logits_, ROWS, plain ? highest_ : nullptr);
        float factor = rule_.factor;
        if (!plain) {
            scale_keys<ROWS>(block.key_scale, block.count, logits_);
            factor = prepare_logits<ROWS>(call_, lane_, tile_, rule_, block, 0, logits_, nullptr);
            find_highest(block.count);
        }
        if (raise_base(factor)) {
            apply_factor(logits_, block.count * ROWS, factor);
            factor = 1.0f;
        }
        const bool mixed = is_mixed(block, block.values, block.value_scale, dim_);
        exponentiate(block, factor, mixed ? nullptr : block.value_scale);
        if (mixed) {
            add_seen<Math, ROWS>(block.values, block.value_scale, block.count, dim_, weights_, out_);
            return;
        }
        const auto rows = Math::along_dim(block.values, block.count, dim_, value_room_);
        const auto values = Math::along_keys(rows, block.count, dim_, pair_room_);
        gemm<Math, Layout::COLUMNS, true, VECS>(dim_, ROWS, values.data, values.stride, weights_, ROWS,
                                                Math::key_words(block.count), out_, ROWS);
    }

    // The highest number of each row in the block; of a plain block, the product finds it on its way.
    void find_highest(int64_t count) {
        for (int row = 0; row < ROWS; row += VECS * WIDTH) {
            Vec highest[VECS];
            for (int j = 0; j < VECS; ++j) highest[j] = load(highest_ + row + j * WIDTH);
            for (const float* s = logits_ + row; s < logits_ + count * ROWS; s += ROWS) {
#pragma GCC unroll 4
                for (int j = 0; j < VECS; ++j) highest[j] = max(highest[j], load(s + j * WIDTH));
            }
            for (int j = 0; j < VECS; ++j) store(highest_ + row + j * WIDTH, highest[j]);
        }
    }

    // Where logits exceed the base by more than SLACK, they become the base, and what has been summed shrinks. Returns
    // whether some base is coarse.
    bool raise_base(float factor) {
        bool grew = false, coarse = false;
        for (int row = 0; row < ROWS; row += WIDTH) {
            const Vec old = load(base_ + row), candidate = mul(load(highest_ + row), broadcast(factor));
            const Vec now = select_less(add(old, broadcast(SLACK)), candidate, candidate, old);
            const Vec shrink = shrinkages(old, now);
            store(base_ + row, now);
            store(minus_base_ + row, minus_base(now));
            coarse |= is_coarse(minus_base(now));
            store(shrink_ + row, shrink);
            store(total_ + row, mul(load(total_ + row), shrink));
            grew |= any_greater(now, old);
        }
        if (!grew) return coarse;
        for (int64_t i = 0; i < dim_ * ROWS; i += ROWS) {
            for (int j = 0; j < ROWS; j += WIDTH) store(out_ + i + j, mul(load(out_ + i + j), load(shrink_ + j)));
        }
        return coarse;
    }

    // Weights 2^(logit - base) and their sums; the weights times `scales`, unless null.
    void exponentiate(const Block& block, float factor, const float* scales) {
        const Vec f = broadcast(factor);
        for (int row = 0; row < ROWS; row += VECS * WIDTH) {
            Vec minus_base[VECS], total[VECS];
            for (int j = 0; j < VECS; ++j) {
                minus_base[j] = load(minus_base_ + row + j * WIDTH);
                total[j] = load(total_ + row + j * WIDTH);
            }
            const float* s = logits_ + row;
            Word* weights = weights_ + row;
            const int64_t count = block.count;
            for (int64_t k = 0; k < count; k += Math::VALUES, s += Math::VALUES * ROWS, weights += ROWS) {
                const float* const scale = scales ? scales + k : nullptr;
                for (int v = 0; row == 0 && v < Math::VALUES; ++v) fetch_row(block.values, k + v, dim_); // next
#pragma GCC unroll 4
                for (int j = 0; j < VECS; ++j) {
                    const float* const p = s + j * WIDTH;
                    if constexpr (Math::VALUES == 1) {
                        const Vec w = weight_of<1>(load(p), f, minus_base[j]);
                        total[j] = add(total[j], w);
                        store(weights + j * WIDTH, scale ? mul(w, broadcast(scale[0])) : w);
                    } else {
#ifdef __AVX512BF16__
                        const bool both = k + 1 < count;
                        Vec even = weight_of<2>(load(p), f, minus_base[j]);
                        Vec odd = both ? weight_of<2>(load(p + ROWS), f, minus_base[j]) : broadcast(0.0f);
                        total[j] = add(total[j], add(even, odd));
                        if (scale) {
                            even = mul(even, broadcast(scale[0]));
                            odd = mul(odd, broadcast(both ? scale[1] : 0.0f));
                        }
                        store_pairs(weights + j * WIDTH, make_pairs(even, odd));
#endif
                    }
                }
            }
            for (int j = 0; j < VECS; ++j) store(total_ + row + j * WIDTH, total[j]);
        }
    }

    void finish() {
        float factors[ROWS];
        for (int r = 0; r < ROWS; ++r) factors[r] = inverse(total_[r]);
        store_rows<ROWS>(out_, factors, call_, tile_, call_.o);
        for (int64_t r = 0; r < tile_.rows; ++r) write_lse(call_, tile_, r, lse_of(base_[r], total_[r]));
    }

    static constexpr int VECS = ROWS / WIDTH < KERNEL_VECS ? ROWS / WIDTH : KERNEL_VECS;
    const DsmrCall& call_;
    const Lane& lane_;
    const Tile& tile_;
    const LogitRule rule_;
    const int64_t dim_;
    Word *queries_, *key_room_, *value_room_, *pair_room_, *weights_, *packed_;
    float *logits_, *out_, *highest_, *base_, *minus_base_, *total_, *shrink_;
};

} // namespace dsmr::DSMR_ISA

// The forward pass of one tile: an online softmax over its blocks of keys (Dao et al. 2022, "FlashAttention"), with
// queries in the lanes. No score matrix is ever whole, and keys and values are read where they lie.
#pragma once

#include "logits.hpp"

namespace dsmr::DSMR_ISA {

template <class Math, int LANES>
class ForwardTile {
    using Word = typename Math::Word;

public:
    static std::size_t scratch_bytes(int64_t dim) {
        const int64_t operands = 2 * Math::room(BLOCK_KEYS, dim) + Math::pair_room(BLOCK_KEYS, dim);
        const int64_t words = (2 * Math::packed_stride(dim) + BLOCK_KEYS) * LANES + operands;
        return (words + (BLOCK_KEYS + padded(dim) + 3) * LANES) * 4 + 16 * ALIGNMENT;
    }

    ForwardTile(const DsmrCall& call, const Lane& lane, const Tile& tile, Scratch& scratch)
        : call_(call), lane_(lane), tile_(tile), rule_(make_rule(call, tile)), dim_(call.dim) {
        queries_ = scratch.take<Word>(Math::packed_stride(dim_) * LANES);
        key_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        value_room_ = scratch.take<Word>(Math::room(BLOCK_KEYS, dim_));
        pair_room_ = scratch.take<Word>(Math::pair_room(BLOCK_KEYS, dim_));
        weights_ = scratch.take<Word>(BLOCK_KEYS * LANES);
        logits_ = scratch.take<float>(BLOCK_KEYS * LANES);
        out_ = scratch.take<float>(padded(dim_) * LANES);
        highest_ = scratch.take<float>(LANES);
        total_ = scratch.take<float>(LANES);
        shrink_ = scratch.take<float>(LANES);
        packed_ = scratch.take<Word>(Math::packed_stride(dim_) * LANES);
    }

    void run() {
        start();
        for_each_memory_block(call_, lane_, tile_, [&](const Block& block) { attend(block); });
        for_each_segment_block(call_, tile_, [&](const Block& block) { attend(block); });
        finish();
    }

private:
    void start() {
        std::memset(packed_, 0, Math::packed_stride(dim_) * LANES * sizeof(Word));
        for (int64_t r = 0; r < tile_.rows; ++r) {
            const void* const row = at(call_.q.data, call_.type, row_offset(tile_, call_.q, r));
            Math::pack_row(row, call_.type, dim_, rule_.sign, packed_, r);
        }
        Math::turn(packed_, LANES, dim_, queries_);
        for (int64_t i = 0; i < padded(dim_) * LANES; i += WIDTH) store(out_ + i, broadcast(0.0f));
        for (int r = 0; r < LANES; ++r) highest_[r] = LOWEST, total_[r] = 0.0f;
    }

    void attend(const Block& block) {
        const auto keys = Math::along_dim(block.keys, block.count, dim_, key_room_);
        gemm<Math, Layout::ROWS, false, VECS>(block.count, LANES, keys.data, keys.stride, queries_, LANES,
                                              Math::words(dim_), logits_, LANES);
        float factor = rule_.factor;
        if (!is_plain(rule_, block)) {
            factor = prepare_logits<LANES>(call_, lane_, tile_, rule_, block, logits_, nullptr);
        }
        raise_maximum(block.count, factor);
        exponentiate(block, factor);
        const auto rows = Math::along_dim(block.values, block.count, dim_, value_room_);
        const auto values = Math::along_keys(rows, block.count, dim_, pair_room_);
        gemm<Math, Layout::COLUMNS, true, VECS>(dim_, LANES, values.data, values.stride, weights_, LANES,
                                                Math::key_words(block.count), out_, LANES);
    }

    // The highest logit so far; where it grows, what has been summed shrinks.
    void raise_maximum(int64_t count, float factor) {
        bool grew = false;
        for (int lane = 0; lane < LANES; lane += VECS * WIDTH) {
            Vec highest[VECS];
            for (int j = 0; j < VECS; ++j) highest[j] = load(logits_ + lane + j * WIDTH);
            for (const float* s = logits_ + lane; s < logits_ + count * LANES; s += LANES) {
#pragma GCC unroll 4
                for (int j = 0; j < VECS; ++j) highest[j] = max(highest[j], load(s + j * WIDTH));
            }
            for (int j = 0; j < VECS; ++j) grew |= raise_lanes(lane + j * WIDTH, mul(highest[j], broadcast(factor)));
        }
        if (!grew) return;
        for (int64_t i = 0; i < dim_ * LANES; i += LANES) {
            for (int j = 0; j < LANES; j += WIDTH) store(out_ + i + j, mul(load(out_ + i + j), load(shrink_ + j)));
        }
    }

    bool raise_lanes(int lane, Vec candidate) {
        const Vec old = load(highest_ + lane), now = max(old, candidate), shrink = exp2(sub(old, now));
        store(highest_ + lane, now);
        store(shrink_ + lane, shrink);
        store(total_ + lane, mul(load(total_ + lane), shrink));
        return any_greater(now, old);
    }

    // Weights 2^(logit - highest) and their sums.
    void exponentiate(const Block& block, float factor) {
        const Vec f = broadcast(factor), zero = broadcast(0.0f);
        for (int lane = 0; lane < LANES; lane += VECS * WIDTH) {
            Vec minus_highest[VECS], total[VECS];
            for (int j = 0; j < VECS; ++j) {
                minus_highest[j] = sub(zero, load(highest_ + lane + j * WIDTH));
                total[j] = load(total_ + lane + j * WIDTH);
            }
            const float* s = logits_ + lane;
            Word* weights = weights_ + lane;
            const float* const scales = block.value_scale;
            const int64_t count = block.count;
            for (int64_t k = 0; k < count; k += Math::VALUES, s += Math::VALUES * LANES, weights += LANES) {
                const float* const scale = scales ? scales + k : nullptr;
#pragma GCC unroll 4
                for (int j = 0; j < VECS; ++j) {
                    const float* const p = s + j * WIDTH;
                    if constexpr (Math::VALUES == 1) {
                        const Vec w = exp2(fma(load(p), f, minus_highest[j]));
                        total[j] = add(total[j], w);
                        store(weights + j * WIDTH, scale ? mul(w, broadcast(scale[0])) : w);
                    } else {
#ifdef __AVX512BF16__
                        const bool both = k + 1 < count;
                        Vec even = exp2_rough(fma(load(p), f, minus_highest[j]));
                        Vec odd = both ? exp2_rough(fma(load(p + LANES), f, minus_highest[j])) : zero;
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
            for (int j = 0; j < VECS; ++j) store(total_ + lane + j * WIDTH, total[j]);
        }
    }

    void finish() {
        float inverse[LANES];
        for (int r = 0; r < LANES; ++r) inverse[r] = total_[r] == 0 ? 0.0f : 1.0f / total_[r]; // sees nothing: zeros
        store_lanes<LANES>(out_, inverse, call_, tile_, call_.o);
        for (int64_t r = 0; r < tile_.rows; ++r) write_lse(call_, tile_, r, highest_[r], total_[r]);
    }

    static constexpr int VECS = LANES / WIDTH < TILE_VECS ? LANES / WIDTH : TILE_VECS;
    const DsmrCall& call_;
    const Lane& lane_;
    const Tile& tile_;
    const LogitRule rule_;
    const int64_t dim_;
    Word *queries_, *key_room_, *value_room_, *pair_room_, *weights_, *packed_;
    float *logits_, *out_, *highest_, *total_, *shrink_;
};

} // namespace dsmr::DSMR_ISA

// From products q . k to logits: everything that may happen to a block [keys][LANES] between product and softmax.
// Logits are in base 2. What a call does not ask for costs nothing: plain blocks are not touched here at all.
#pragma once

#include "tile.hpp"

namespace dsmr::DSMR_ISA {

// tanh: a series where 1 - 2 / (e^2x + 1) would cancel.
DSMR_INLINE Vec tanh(Vec x) {
    const Vec zero = broadcast(0.0f), one = broadcast(1.0f);
    const Vec size = max(x, sub(zero, x)), x2 = mul(x, x);
    // |x| < 0.4: the Taylor series to x^13, whose next term is below 4e-9 of x.
    Vec p = broadcast(21844.0f / 6081075.0f);
    p = fma(p, x2, broadcast(-1382.0f / 155925.0f));
    p = fma(p, x2, broadcast(62.0f / 2835.0f));
    p = fma(p, x2, broadcast(-17.0f / 315.0f));
    p = fma(p, x2, broadcast(2.0f / 15.0f));
    p = fma(p, x2, broadcast(-1.0f / 3.0f));
    const Vec series = fma(mul(p, x2), x, x);
    const Vec shrink = exp2(mul(size, broadcast(-2.0f * LOG2E)));
    const Vec large = div(sub(one, shrink), add(one, shrink));
    return select_less(size, broadcast(0.4f), series, select_less(x, zero, sub(zero, large), large));
}

// How a call makes logits of products. A logit is factor x product, unless `prepare_logits` has already made logits.
struct LogitRule {
    float sign;   // what the queries are multiplied by: the sign of the scale, or 0
    float factor; // positive
    float softcap, slopes[WIDEST_TILE];
    bool capped, sloped;
};

DSMR_INLINE LogitRule make_rule(const DsmrCall& call, const Tile& tile) {
    LogitRule rule;
    const float scale = float(call.scale);
    rule.sign = scale > 0 ? 1.0f : scale < 0 ? -1.0f : 0.0f;
    rule.factor = scale ? __builtin_fabsf(scale) * LOG2E : 1.0f;
    rule.capped = call.softcap > 0, rule.sloped = call.slopes != nullptr;
    rule.softcap = float(call.softcap) * LOG2E;
    for (int64_t r = 0; rule.sloped && r < WIDEST_TILE; ++r) {
        rule.slopes[r] = call.slopes[row_head(tile, least(r, tile.rows - 1))] * LOG2E;
    }
    return rule;
}

DSMR_INLINE float block_position(const DsmrCall& call, const Lane& lane, const Block& block, int64_t k) {
    return float(block.run ? position_of(call, lane, *block.run, block.first + k) : block.first + k);
}

// How many keys of the block lie before each row's interval, and which is its last.
template <int LANES>
DSMR_INLINE void block_bounds(const Tile& tile, const Block& block, float* before, float* last) {
    for (int r = 0; r < LANES; ++r) {
        const int64_t hidden = block.run ? entries_before(*block.run, tile.bound[r]) : tile.bound[r];
        before[r] = float(most(-1, least(BLOCK_KEYS, hidden - block.first)));
        last[r] = block.run ? float(BLOCK_KEYS) : float(most(-1, least(BLOCK_KEYS, tile.token[r] - block.first)));
    }
}

// Turns products into logits where more than a factor is asked for; returns the factor still to be applied. `cap_slope`
// [keys][LANES] receives the derivative of the softcap, if there is one and the caller wants it (not null).
template <int LANES>
static __attribute__((noinline)) float prepare_logits(const DsmrCall& call, const Lane& lane, const Tile& tile,
                                                      const LogitRule& rule, const Block& block, float* s,
                                                      float* cap_slope) {
    const int64_t size = block.count * LANES;
    if (block.key_scale) {
        for (int64_t k = 0; k < block.count; ++k) {
            const Vec scale = broadcast(block.key_scale[k]);
            for (float* p = s + k * LANES; p < s + (k + 1) * LANES; p += WIDTH) store(p, mul(load(p), scale));
        }
    }
    float factor = rule.factor;
    if (rule.capped) {
        const Vec inward = broadcast(factor / rule.softcap), outward = broadcast(rule.softcap);
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Vec t = tanh(mul(load(s + i), inward));
            store(s + i, mul(t, outward));
            if (cap_slope) store(cap_slope + i, fma(sub(broadcast(0.0f), t), t, broadcast(1.0f)));
        }
        factor = 1.0f;
    }
    if (rule.sloped) {
        const Vec multiplier = broadcast(factor);
        float tokens[LANES];
        for (int r = 0; r < LANES; ++r) tokens[r] = float(tile.token[r]);
        for (int64_t k = 0; k < block.count; ++k) {
            const Vec position = broadcast(block_position(call, lane, block, k));
            for (int r = 0; r < LANES; r += WIDTH) {
                float* const p = s + k * LANES + r;
                const Vec distance = sub(position, load(tokens + r)); // negative: keys are earlier
                store(p, fma(distance, load(rule.slopes + r), mul(load(p), multiplier)));
            }
        }
        factor = 1.0f;
    }
    if (block.masked) {
        float before[LANES], last[LANES];
        block_bounds<LANES>(tile, block, before, last);
        const Vec hidden = broadcast(HIDDEN);
        for (int64_t k = 0; k < block.count; ++k) {
            const Vec key = broadcast(float(k));
            for (int r = 0; r < LANES; r += WIDTH) {
                float* const p = s + k * LANES + r;
                const Vec not_too_old = select_less(key, load(before + r), hidden, load(p));
                store(p, select_less(load(last + r), key, hidden, not_too_old));
            }
        }
    }
    return factor;
}

DSMR_INLINE bool is_plain(const LogitRule& rule, const Block& block) {
    return !block.masked && !block.key_scale && !rule.capped && !rule.sloped;
}

} // namespace dsmr::DSMR_ISA

// From products q . k to logits: everything that may happen to a block [keys][rows] between product and softmax. Logits
// are in base 2. What a call does not ask for costs nothing: plain blocks are not touched here at all.
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

// at(k) of the keys whose logits lie in one vector of s [keys][ROWS], from key k on: of every row.
template <int ROWS, class At>
DSMR_INLINE Vec by_key(int64_t k, const At& at) {
    if constexpr (ROWS >= WIDTH) {
        return broadcast(at(k));
    } else {
        float x[WIDTH];
        for (int i = 0; i < WIDTH; ++i) x[i] = at(k + i / ROWS);
        return load(x);
    }
}

// s[k][r] *= scale[k], unless it is null
template <int ROWS>
DSMR_INLINE void scale_keys(const float* scale, int64_t count, float* s) {
    for (int64_t k = 0; scale && k < count; ++k) {
        if constexpr (ROWS < WIDTH) {
            for (int r = 0; r < ROWS; ++r) s[k * ROWS + r] *= scale[k];
        } else {
            for (float* p = s + k * ROWS; p < s + (k + 1) * ROWS; p += WIDTH) {
                store(p, mul(load(p), broadcast(scale[k])));
            }
        }
    }
}

// Turns products s [keys][ROWS] of the tile's rows from `row` on, in whole vectors, into logits where more than a
// factor is asked for; returns the factor still to be applied. `cap_slope`, of the same shape, receives the derivative
// of the softcap, if there is one and the caller wants it (not null).
template <int ROWS>
static __attribute__((noinline)) float prepare_logits(const DsmrCall& call, const Lane& lane, const Tile& tile,
                                                      const LogitRule& rule, const Block& block, int64_t row, float* s,
                                                      float* cap_slope) {
    // Few rows stand in a vector several times, for so many keys.
    constexpr int VECTORS = ROWS > WIDTH ? ROWS / WIDTH : 1, KEYS = ROWS < WIDTH ? WIDTH / ROWS : 1;
    constexpr int PERIOD = VECTORS * WIDTH;
    float factor = rule.factor;
    if (rule.capped) {
        const Vec inward = broadcast(factor / rule.softcap), outward = broadcast(rule.softcap);
        for (int64_t i = 0; i < block.count * ROWS; i += WIDTH) {
            const Vec t = tanh(mul(load(s + i), inward));
            store(s + i, mul(t, outward));
            if (cap_slope) store(cap_slope + i, fma(sub(broadcast(0.0f), t), t, broadcast(1.0f)));
        }
        factor = 1.0f;
    }
    if (rule.sloped) {
        float token[PERIOD], slope[PERIOD];
        for (int i = 0; i < PERIOD; ++i) {
            token[i] = float(tile.token[row + i % ROWS]), slope[i] = rule.slopes[row + i % ROWS];
        }
        const auto position_at = [&](int64_t k) { return block_position(call, lane, block, k); };
        for (int64_t k = 0; k < block.count; k += KEYS) {
            const Vec position = by_key<ROWS>(k, position_at);
            for (int i = 0; i < PERIOD; i += WIDTH) {
                float* const p = s + k * ROWS + i;
                const Vec distance = sub(position, load(token + i)); // negative: keys are earlier
                store(p, fma(distance, load(slope + i), mul(load(p), broadcast(factor))));
            }
        }
        factor = 1.0f;
    }
    if (block.masked) {
        float before[PERIOD], last[PERIOD]; // keys of the block before each row's interval, and its last
        for (int i = 0; i < PERIOD; ++i) {
            const int64_t r = row + i % ROWS, bound = tile.bound[r];
            const int64_t hidden = block.run ? entries_before(*block.run, bound) : bound;
            before[i] = float(most(-1, least(block.count, hidden - block.first)));
            last[i] = float(block.run ? block.count : most(-1, least(block.count, tile.token[r] - block.first)));
        }
        const Vec hidden = broadcast(HIDDEN);
        for (int64_t k = 0; k < block.count; k += KEYS) {
            const Vec key = by_key<ROWS>(k, [](int64_t k) { return float(k); });
            for (int i = 0; i < PERIOD; i += WIDTH) {
                float* const p = s + k * ROWS + i;
                const Vec not_too_old = select_less(key, load(before + i), hidden, load(p));
                store(p, select_less(load(last + i), key, hidden, not_too_old));
            }
        }
    }
    return factor;
}

// Is a factor all that makes logits of a block's products?
DSMR_INLINE bool is_plain(const LogitRule& rule, const Block& block) {
    return !block.masked && !rule.capped && !rule.sloped;
}

} // namespace dsmr::DSMR_ISA

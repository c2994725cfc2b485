// The step's working memory: what all threads share, and what each keeps to itself.
#pragma once

#include <algorithm>

#include "step.hpp"
#include "types.hpp"

namespace dsmr {

constexpr int CHUNK = 512;  // keys that are attended to at a time; fixed, so that sums do not depend on the threads

// Vectors of a lane each; [lanes, width] and [lanes, hidden] are filled up with zeros like the matrices' rows.
struct Shared {
    float* x;        // [lanes, width]: the residual stream
    float* change;   // [lanes, width]: what a branch adds to it
    float* qkv;      // [lanes, (heads + 2 kv_heads) head_dim]
    float* hidden;   // [lanes, hidden]
    float* sums;     // [lanes, kv_heads, chunks]: partial softmaxes, each of heads / kv_heads rows
};

struct Private {
    float* h;           // [lanes, width]: normalised
    float* positioned;  // [lanes, width]: with positions added
    float* attended;    // [lanes, width]
    float* heads;       // [lanes, heads + kv_heads, row_pitch]: q and k with positions; q scaled for base 2
    float* sine;        // [lanes, width]
    float* cosine;      // [lanes, width]
    float* head;        // [head_dim]: a shifted key, or a normalised head
};

// From one head's row to the next, where attention reads or writes whole vectors.
DSMR_INLINE int64_t row_pitch(const Model& model) { return (model.head_dim + 15) / 16 * 16; }

// Chunks that a KV head's visible slots can make: of up to four runs, each with a short one at its end.
DSMR_INLINE int64_t most_chunks(const Model& model, const State& state) {
    int64_t slots = 0;
    for (int i = 0; i < model.layers; ++i) slots = std::max(slots, state.ring[i].archive + state.ring[i].recent);
    return slots / CHUNK + 4;
}

// Hands out stretches of a buffer that begin at multiples of 64 bytes; with no buffer it only counts.
class Carver {
public:
    explicit Carver(float* base) : base(base) {}

    float* take(int64_t size) {
        float* const taken = base ? base + used : nullptr;
        used += (size + 15) / 16 * 16;
        return taken;
    }
    int64_t used = 0;

private:
    float* const base;
};

DSMR_INLINE Shared carve_shared(const Model& model, const State& state, Carver& carver) {
    const int64_t lanes = state.lanes, width = model.logits.columns, hidden = model.layer[0].down.columns;
    const int64_t heads = model.heads + 2 * model.kv_heads, rows = lanes * model.heads * most_chunks(model, state);
    const int64_t numbers_a_row = row_pitch(model) + 2; // as RowSums counts them
    Shared shared;
    shared.x = carver.take(lanes * width);
    shared.change = carver.take(lanes * width);
    shared.qkv = carver.take(lanes * heads * model.head_dim);
    shared.hidden = carver.take(lanes * hidden);
    shared.sums = carver.take(rows * numbers_a_row);
    return shared;
}

DSMR_INLINE Private carve_private(const Model& model, const State& state, Carver& carver) {
    const int64_t lanes = state.lanes, width = model.logits.columns;
    Private mine;
    mine.h = carver.take(lanes * width);
    mine.positioned = carver.take(lanes * width);
    mine.attended = carver.take(lanes * width);
    mine.heads = carver.take(lanes * (model.heads + model.kv_heads) * row_pitch(model));
    mine.sine = carver.take(lanes * width);
    mine.cosine = carver.take(lanes * width);
    mine.head = carver.take(model.head_dim);
    return mine;
}

} // namespace dsmr

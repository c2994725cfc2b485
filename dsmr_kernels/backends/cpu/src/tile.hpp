// A tile: up to WIDEST_TILE query rows of one KV head, side by side in vectors, and the blocks of keys that they see.
//
// Row r of a KV head is head r % group of token r / group: the query heads that share keys are neighbours in a tile.
#pragma once

#include "geometry.hpp"
#include "softmax.hpp"

namespace dsmr::DSMR_ISA {

constexpr int WIDEST_TILE = 64;
constexpr int64_t LARGEST_DIM = 256;
constexpr int BLOCK_KEYS = 192; // the best of 96 to 384 on Zen 4; a multiple of the 6 rows of a micro-kernel

struct Tile {
    int64_t lane, kv_head, group;
    int64_t first_row, rows; // rows of absent tokens left out
    int64_t first_token, last_token;
    int64_t lowest, highest_bound; // of the rows' first visible positions
    int64_t token[WIDEST_TILE], bound[WIDEST_TILE];
};

// Consecutive keys, all of one run of the ring or all of the segment.
struct Block {
    Rows keys, values;
    const float *key_scale, *value_scale; // null unless quantised
    int64_t count;
    const Run* run;  // null: the segment
    int64_t first;   // index of the first key in the run or the segment
    bool masked;     // does some row not see some key?
};

// The rows [first_row, first_row + rows) of a head, whose real ones must fit into `room`.
DSMR_INLINE Tile make_tile(const DsmrCall& call, const Lane& lane, int64_t kv_head, int64_t first_row, int64_t rows,
                           int64_t room = WIDEST_TILE) {
    Tile tile;
    tile.lane = lane.index, tile.kv_head = kv_head, tile.group = call.heads / call.kv_heads;
    tile.first_row = first_row, tile.rows = least(rows, lane.tokens * tile.group - first_row);
    if (tile.rows <= 0) return tile;
    for (int64_t r = 0; r < room; ++r) { // what is beyond the last row does as it does
        const int64_t token = (first_row + least(r, tile.rows - 1)) / tile.group;
        const bool as_before = r && token == tile.token[r - 1];
        tile.token[r] = token;
        tile.bound[r] = as_before ? tile.bound[r - 1] : lowest_visible(call, lane, token);
        tile.lowest = r ? least(tile.lowest, tile.bound[r]) : tile.bound[r];
        tile.highest_bound = r ? most(tile.highest_bound, tile.bound[r]) : tile.bound[r];
    }
    tile.first_token = tile.token[0], tile.last_token = tile.token[tile.rows - 1];
    return tile;
}

DSMR_INLINE int64_t row_token(const Tile& tile, int64_t r) { return (tile.first_row + r) / tile.group; }
DSMR_INLINE int64_t row_head(const Tile& tile, int64_t r) {
    return tile.kv_head * tile.group + (tile.first_row + r) % tile.group;
}
// Element offset of a row in a strided tensor, in a contiguous one, and in [batch, heads, tokens].
DSMR_INLINE int64_t row_offset(const Tile& tile, const DsmrTensor& x, int64_t r) {
    return tile.lane * x.lane + row_token(tile, r) * x.token + row_head(tile, r) * x.head;
}
DSMR_INLINE int64_t row_offset(const Tile& tile, const DsmrCall& call, int64_t r) {
    return ((tile.lane * call.tokens + row_token(tile, r)) * call.heads + row_head(tile, r)) * call.dim;
}
DSMR_INLINE const void* row_data(const Tile& tile, const DsmrCall& call, const DsmrTensor& x, int64_t r) {
    return at(static_cast<const void*>(x.data), call.type, row_offset(tile, x, r));
}
DSMR_INLINE int64_t lse_offset(const Tile& tile, const DsmrCall& call, int64_t r) {
    return (tile.lane * call.heads + row_head(tile, r)) * call.tokens + row_token(tile, r);
}
DSMR_INLINE void write_lse(const DsmrCall& call, const Tile& tile, int64_t r, float lse) {
    if (call.lse) call.lse[lse_offset(tile, call, r)] = lse;
}

// Column r of `table` [padded(dim)][ROWS] times factors[r] becomes row r of the tile in a contiguous tensor.
template <int ROWS>
DSMR_INLINE void store_rows(const float* table, const float* factors, const DsmrCall& call, const Tile& tile,
                            void* to) {
    alignas(ALIGNMENT) float rows[WIDTH * padded(LARGEST_DIM)];
    const int64_t pitch = padded(call.dim);
    for (int64_t first = 0; first < tile.rows; first += WIDTH) {
        transpose(table + first, ROWS, pitch, WIDTH, rows, pitch);
        for (int64_t r = first; r < least(first + WIDTH, tile.rows); ++r) {
            store_row(rows + (r - first) * pitch, call.dim, at(to, call.type, row_offset(tile, call, r)), call.type,
                      factors[r]);
        }
    }
}

DSMR_INLINE Rows ring_rows(const DsmrCall& call, const DsmrRing& ring, int64_t lane, int64_t kv_head, int64_t slot) {
    const int64_t offset = lane * ring.lane + kv_head * ring.head + slot * ring.slot;
    return {at(ring.data, call.ring_type, offset), call.ring_type, ring.slot};
}
DSMR_INLINE const float* ring_scales(const DsmrRing& ring, int64_t lane, int64_t kv_head, int64_t slot) {
    return ring.scale ? ring.scale + lane * ring.scale_lane + kv_head * ring.scale_head + slot : nullptr;
}
DSMR_INLINE Rows segment_rows(const DsmrCall& call, const DsmrTensor& x, int64_t lane, int64_t kv_head, int64_t token) {
    const int64_t offset = lane * x.lane + token * x.token + kv_head * x.head;
    return {at(x.data, call.type, offset), call.type, x.token};
}

// `count` keys from `first` on, of a run of the ring or, if that is null, of the segment.
DSMR_INLINE Block make_block(const DsmrCall& call, const Tile& tile, const Run* run, int64_t first, int64_t count) {
    const int64_t lane = tile.lane, head = tile.kv_head;
    if (!run) {
        const bool masked = tile.highest_bound > first || first + count - 1 > tile.first_token;
        return {segment_rows(call, call.k, lane, head, first),
                segment_rows(call, call.v, lane, head, first), nullptr, nullptr, count, nullptr, first, masked};
    }
    const int64_t slot = run->slot + first;
    return {ring_rows(call, call.ring_k, lane, head, slot),   ring_rows(call, call.ring_v, lane, head, slot),
            ring_scales(call.ring_k, lane, head, slot),       ring_scales(call.ring_v, lane, head, slot),
            count, run, first, entries_before(*run, tile.highest_bound) > first};
}

// Calls use(block) for blocks of up to `most_keys` that some row of the tile sees, of the entries [first, last) of the
// visible memory, oldest first.
template <class Use>
DSMR_INLINE void for_each_memory_block(const DsmrCall& call, const Lane& lane, const Tile& tile, int64_t first,
                                       int64_t last, int64_t most_keys, const Use& use) {
    for (int i = 0; i < lane.runs; first -= lane.run[i].count, last -= lane.run[i].count, ++i) {
        const Run& run = lane.run[i];
        const int64_t end = least(last, run.count);
        for (int64_t k = most(most(first, 0), entries_before(run, tile.lowest)); k < end; k += most_keys) {
            use(make_block(call, tile, &run, k, least(most_keys, end - k)));
        }
    }
}

// The same for the segment.
template <class Use>
DSMR_INLINE void for_each_segment_block(const DsmrCall& call, const Tile& tile, int64_t most_keys, const Use& use) {
    const int64_t end = tile.last_token + 1;
    for (int64_t k = most(tile.lowest, 0); k < end; k += most_keys) {
        use(make_block(call, tile, nullptr, k, least(most_keys, end - k)));
    }
}

} // namespace dsmr::DSMR_ISA

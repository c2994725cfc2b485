// Where tokens live in a ring and which of them a call sees: the integer arithmetic of dsmr_kernels/geometry.py.
#pragma once

#include "api.h"
#include "bounds.hpp"
#include "types.hpp"

namespace dsmr::DSMR_ISA {

DSMR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
DSMR_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
DSMR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DSMR_INLINE int64_t wrap(int64_t index, int64_t size) { // the remainder that has the divisor's sign
    const int64_t rest = index % size;
    return rest < 0 ? rest + size : rest;
}

constexpr int64_t EVERYTHING = INT64_MIN / 4; // a lower bound that hides nothing
constexpr int MAX_RUNS = 4;                   // two of the archive, two of the recent tokens

// Consecutive slots [slot, slot + count) and the relative position of the entry in each: `first + i`, or, if it is
// retained, that of the token kept of group `group + i`.
struct Run {
    int64_t slot, count, first, group;
    bool retained;
};

struct Clock {
    int64_t position, length, phase;
};

// One lane of a call: what it sees of the memory, oldest first, how many of its tokens are real, and its clock.
struct Lane {
    int64_t index, tokens, horizon;
    Clock clock;
    int runs;
    Run run[MAX_RUNS];
};

// A hash of the group's index says which token is kept: C. Wellons' `lowbias32`, as in geometry.py.
DSMR_INLINE uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

DSMR_INLINE int64_t kept_offset(const DsmrCall& call, int64_t group) {
    if (!call.keep_random) return call.stride - 1;
    return int64_t((uint64_t(mix32(uint32_t(group))) * uint64_t(call.stride)) >> 32);
}

// Groups of one piece are neighbours in the archive, and complete groups of two pieces never meet.
DSMR_INLINE int64_t group_slot(const DsmrCall& call, int64_t piece_start, int64_t group) {
    return wrap((piece_start + group * call.stride + call.stride - 1) / call.stride, call.archive);
}

DSMR_INLINE int64_t position_of(const DsmrCall& call, const Lane& lane, const Run& run, int64_t i) {
    if (!run.retained) return run.first + i;
    return (run.group + i) * call.stride + kept_offset(call, run.group + i) - lane.clock.length;
}

DSMR_INLINE int64_t entries_of(const Lane& lane) {
    int64_t entries = 0;
    for (int i = 0; i < lane.runs; ++i) entries += lane.run[i].count;
    return entries;
}

// `count` entries from slot `start` of a part of the ring that begins at `base` and has `size` slots: at most two runs.
DSMR_INLINE void add_runs(Lane& lane, int64_t start, int64_t size, int64_t base, Run entries) {
    const int64_t head = least(entries.count, size - start), rest = entries.count - head;
    if (head > 0) lane.run[lane.runs++] = {base + start, head, entries.first, entries.group, entries.retained};
    if (rest > 0) {
        lane.run[lane.runs++] = {base, rest, entries.first + head, entries.group + head, entries.retained};
    }
}

DSMR_INLINE void find_visible(const DsmrCall& call, Lane& lane) {
    const Clock& clock = lane.clock;
    lane.runs = 0;
    if (call.stride == 1) {
        const int64_t reach = call.window_token ? most(lane.horizon - 1, 0) : lane.horizon + clock.phase;
        const int64_t count = least(clock.length, reach);
        if (count > 0) {
            const int64_t start = wrap(clock.position - count, call.archive);
            add_runs(lane, start, call.archive, 0, {0, count, -count, 0, false});
        }
        return;
    }
    // The newest `horizon` groups that were complete when the open segment began, then the open segment itself.
    const int64_t complete = most(clock.length - clock.phase, 0) / call.stride;
    const int64_t count = least(lane.horizon, complete), first = complete - count;
    if (count > 0) {
        const int64_t start = group_slot(call, clock.position - clock.length, first);
        add_runs(lane, start, call.archive, 0, {0, count, 0, first, true});
    }
    const int64_t open = least(clock.length, clock.phase);
    if (open > 0) {
        const int64_t start = wrap(clock.position - open, call.recent);
        add_runs(lane, start, call.recent, call.archive, {0, open, -open, 0, false});
    }
}

DSMR_INLINE int64_t integer_at(const void* data, int64_t bytes, int64_t index) {
    return bytes == 8 ? static_cast<const int64_t*>(data)[index] : static_cast<const int32_t*>(data)[index];
}

DSMR_INLINE int64_t start_of(const DsmrCall& call, int64_t lane, int64_t token) {
    if (!call.segment_start) return 0;
    return integer_at(call.segment_start, call.start_bytes, lane * call.tokens + token);
}

DSMR_INLINE int64_t tokens_of(const DsmrCall& call, int64_t lane) {
    return call.segment_len ? integer_at(call.segment_len, call.len_bytes, lane) : call.tokens;
}

DSMR_INLINE Clock clock_of(const DsmrCall& call, int64_t lane) {
    const int64_t* clock = call.clock + lane;
    return {clock[0], clock[call.batch], clock[2 * call.batch]};
}

DSMR_INLINE bool starts_fit(const DsmrCall& call, int64_t lane) {
    for (int64_t token = 0, before = 0; call.segment_start && token < call.tokens; ++token) {
        const int64_t start = start_of(call, lane, token);
        if (start < before || start > token) return false;
        before = start;
    }
    return true;
}

// Only after `clock_fits`.
DSMR_INLINE Lane read_lane(const DsmrCall& call, int64_t index) {
    Lane lane;
    lane.index = index;
    lane.tokens = tokens_of(call, index);
    lane.horizon = *call.horizon;
    lane.clock = clock_of(call, index);
    find_visible(call, lane);
    return lane;
}

// The first relative position that token `token` sees; it sees everything from there to itself.
DSMR_INLINE int64_t lowest_visible(const DsmrCall& call, const Lane& lane, int64_t token) {
    const int64_t start = start_of(call, lane.index, token);
    const int64_t bound = start ? start : EVERYTHING;
    return call.window_token ? most(bound, token - lane.horizon + 1) : bound;
}

// How many entries of a run lie before position `bound`. Retained entries are hidden all together or not at all: the
// window that hides some of them needs a ring that keeps every token.
DSMR_INLINE int64_t entries_before(const Run& run, int64_t bound) {
    if (run.retained) return bound > 0 ? run.count : 0;
    return most(0, least(run.count, bound - run.first));
}

// Calls write(token, slot) for every copy of a token that goes into the ring, in an order in which later ones win.
template <class Write>
DSMR_INLINE void for_each_written(const DsmrCall& call, const Lane& lane, const Write& write) {
    if (call.stride == 1) {
        int64_t slot = wrap(lane.clock.position, call.archive);
        for (int64_t token = 0; token < lane.tokens; ++token) {
            write(token, slot);
            if (++slot == call.archive) slot = 0;
        }
        return;
    }
    for (int64_t token = 0; token < lane.tokens; ++token) {
        const int64_t start = start_of(call, lane.index, token);
        const int64_t in_piece = start ? token - start : lane.clock.length + token, group = in_piece / call.stride;
        if (in_piece % call.stride == kept_offset(call, group)) {
            write(token, group_slot(call, lane.clock.position + token - in_piece, group));
        }
        write(token, call.archive + wrap(lane.clock.position + token, call.recent));
    }
}

} // namespace dsmr::DSMR_ISA

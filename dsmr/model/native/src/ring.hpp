// What one new token of each lane sees of a layer's ring, and where it goes: the attention kernels' own geometry.
#pragma once

#include <algorithm>

#include "geometry.hpp"
#include "step.hpp"

namespace dsmr::DSMR_ISA {

class OneToken {
public:
    OneToken(const Call& step, const Ring& ring) {
        call.clock = step.state->clock, call.horizon = ring.horizon, call.batch = step.state->lanes;
        call.segment_len = step.segment_len, call.len_bytes = sizeof *step.segment_len, call.tokens = 1;
        call.archive = ring.archive, call.recent = ring.recent;
        call.stride = step.state->stride, call.keep_random = step.state->keep_random;
        call.window_token = step.model->token_window;
    }

    // A lane that stands still sees nothing.
    Lane lane(int index) const {
        Lane lane = read_lane(call, index);
        if (!lane.tokens) lane.runs = 0;
        return lane;
    }

    // Every token that is read sees itself, but for a token window of no tokens.
    bool sees_itself(const Lane& lane) const { return lane.tokens && lowest_visible(call, lane, 0) <= 0; }

    // write(slot) for each copy of the lane's token that is kept.
    template <class Write>
    void for_each_slot(const Lane& lane, const Write& write) const {
        for_each_written(call, lane, [&](int64_t, int64_t slot) { write(slot); });
    }

private:
    DsmrCall call{};
};

// visit(number of the chunk, first slot, slots): what a lane sees, in chunks of up to `most` slots.
template <class Visit>
DSMR_INLINE void for_each_chunk(const Lane& lane, int64_t most, const Visit& visit) {
    int64_t chunk = 0;
    for (int i = 0; i < lane.runs; ++i) {
        const Run& run = lane.run[i];
        for (int64_t done = 0; done < run.count; done += most)
            visit(chunk++, run.slot + done, std::min(most, run.count - done));
    }
}

DSMR_INLINE int64_t count_chunks(const Lane& lane, int64_t most) {
    int64_t count = 0;
    for_each_chunk(lane, most, [&](int64_t, int64_t, int64_t) { ++count; });
    return count;
}

} // namespace dsmr::DSMR_ISA

// Where a token lives in a ring and which slots one token may see: `dsmr_kernels.geometry.Geometry`, for one new token.
#pragma once

#include <algorithm>
#include <cstdint>

#include "step.hpp"

namespace dsmr::DSMR_ISA {

struct Clock {
    int64_t position, length, phase;
};

// Consecutive slots.
struct Run {
    int64_t start, count;
};

struct Runs {
    Run run[4];
    int size = 0;

    // `count` entries from the unwrapped index `first` on, of a part of `slots` slots that begins at `base`.
    void add(int64_t first, int64_t count, int64_t base, int64_t slots) {
        if (count <= 0) return;
        const int64_t start = first % slots, head = std::min(count, slots - start);
        run[size++] = {base + start, head};
        if (count > head) run[size++] = {base, count - head};
    }

    int64_t chunks(int64_t most) const {
        int64_t count = 0;
        for_each_chunk(most, [&](int64_t, int64_t, int64_t) { ++count; });
        return count;
    }

    // visit(number of the chunk, first slot, slots): each run in chunks of up to `most` slots.
    template <class Visit>
    void for_each_chunk(int64_t most, const Visit& visit) const {
        int64_t chunk = 0;
        for (int i = 0; i < size; ++i)
            for (int64_t done = 0; done < run[i].count; done += most)
                visit(chunk++, run[i].start + done, std::min(most, run[i].count - done));
    }
};

// Two slots at most, both in a ring with a stride; -1: none.
struct Slots {
    int64_t archive, recent;
};

// C. Wellons, "Prospecting for hash functions" (2018): `lowbias32`, as in `dsmr_kernels.geometry.mix32`.
inline uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352DU;
    x = (x ^ (x >> 15)) * 0x846CA68BU;
    return x ^ (x >> 16);
}

class Geometry {
public:
    Geometry(const State& state, const Ring& ring, bool token_window)
        : stride(state.stride), keep_random(state.keep_random), token_window(token_window), ring(ring) {}

    // Every token may see itself, but for a token window of no tokens.
    bool sees_itself() const { return !token_window || *ring.horizon > 0; }

    Runs visible(const Clock& clock) const {
        const int64_t horizon = *ring.horizon;
        Runs runs;
        if (stride == 1) {
            const int64_t reach = token_window ? horizon - 1 : horizon + clock.phase;
            const int64_t count = std::min(clock.length, std::max<int64_t>(reach, 0));
            runs.add(clock.position - count, count, 0, ring.archive);
            return runs;
        }
        const int64_t complete = std::max<int64_t>(clock.length - clock.phase, 0) / stride;
        const int64_t count = std::min(horizon, complete), open = std::min(clock.length, clock.phase);
        runs.add(group_slot(clock, complete - count), count, 0, ring.archive);
        runs.add(clock.position - open, open, ring.archive, ring.recent);
        return runs;
    }

    Slots written(const Clock& clock) const {
        if (stride == 1) return {clock.position % ring.archive, -1};
        const int64_t group = clock.length / stride;
        const bool kept = clock.length % stride == offset(group);
        return {kept ? group_slot(clock, group) % ring.archive : -1, ring.archive + clock.position % ring.recent};
    }

private:
    // Index inside a group of the token that is kept.
    int64_t offset(int64_t group) const {
        if (!keep_random) return stride - 1;
        return static_cast<int64_t>((static_cast<uint64_t>(mix32(static_cast<uint32_t>(group))) * stride) >> 32);
    }

    int64_t group_slot(const Clock& clock, int64_t group) const {
        return (clock.position - clock.length + group * stride + stride - 1) / stride;
    }

    const int64_t stride;
    const bool keep_random, token_window;
    const Ring& ring;
};

}  // namespace dsmr::DSMR_ISA

// What kernels.cpp offers for each instruction set, and library.cpp chooses from.
#pragma once

#include "step.hpp"
#include "threads.hpp"

namespace dsmr {

// One thread's place in the team that makes a step together.
struct Member {
    int rank, size;
    Barrier& barrier;

    void wait() const { barrier.wait(size); }
};

struct Kernels {
    void (*run)(const Call& call, const Member& member);
};

} // namespace dsmr

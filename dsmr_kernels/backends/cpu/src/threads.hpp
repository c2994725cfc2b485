// Work on several cores. On PyTorch's own OpenMP pool where there is one: a second pool of spinning threads on the same
// cores would slow both down severalfold. Elsewhere on a small pool of our own.
#pragma once

#include <atomic>
#include <cstdint>

namespace dsmr {

// task(context, rank, size) once on each thread of a team of up to `threads`; returns when all have returned.
// `size` is how many there really are (OpenMP may grant fewer), `rank` runs from 0 to size - 1.
void run_team(int threads, void (*task)(void* context, int rank, int size), void* context);

// task(context, index) for every index in [0, count), each on whichever thread is free. A task must not depend on which
// thread runs it or when: that is what makes results independent of the number of threads.
void parallel_for(int threads, int64_t count, void (*task)(void* context, int64_t index), void* context);

template <class Function>
void parallel_for(int threads, int64_t count, const Function& function) {
    parallel_for(
            threads, count, [](void* context, int64_t index) { (*static_cast<const Function*>(context))(index); },
            const_cast<Function*>(&function));
}

// Where the members of a team wait for each other. Spins, because steps between barriers are short.
class Barrier {
public:
    void wait(int size);

private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> generation_{0};
};

} // namespace dsmr

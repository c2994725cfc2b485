// The threads that make one step together. A step has five meeting points a layer, so they must cost less than a
// microsecond: a barrier of our own, which spins for a while and only then gives the core away.
#pragma once

#include <atomic>

namespace dsmr {

class Barrier {
public:
  explicit Barrier(int threads) : threads(threads) {}

  // Returns when every thread has come, and all that they wrote before is visible.
  void wait();

private:
  const int threads;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> round{0};
};

// One thread's place in the team.
struct Member {
  int thread, threads;
  Barrier& barrier;
};

}  // namespace dsmr

#include "threads.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace dsmr {
namespace {

using TeamTask = void (*)(void* context, int rank, int size);

// The entry points of GNU OpenMP, which `import torch` has loaded for all to see. Linking against a libgomp of our own
// would bring a second pool.
struct OpenMP {
    void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
    int (*thread_num)();
    int (*num_threads)();

    OpenMP() {
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        thread_num = reinterpret_cast<decltype(thread_num)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
        num_threads = reinterpret_cast<decltype(num_threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
    }
    bool found() const { return parallel && thread_num && num_threads; }
};

const OpenMP& openmp() {
    static const OpenMP symbols;
    return symbols;
}

// OpenMP's threads do not survive a fork and it does not notice: a parallel region in the child would wait for ever.
bool forked_since_first_use() {
    static const pid_t owner = getpid();
    return owner != getpid();
}

// Threads that sleep between calls. One caller at a time; it works as rank 0.
class Pool {
public:
    void run(int threads, TeamTask task, void* context) {
        std::lock_guard<std::mutex> one_caller(caller_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (int(workers_.size()) < threads - 1) {
                workers_.emplace_back(&Pool::work, this, int(workers_.size()) + 1, generation_);
                workers_.back().detach();
            }
            task_ = task, context_ = context, size_ = threads, busy_ = threads - 1;
            ++generation_;
        }
        start_.notify_all();
        task(context, 0, threads);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void work(int rank, uint64_t seen) {
        for (std::unique_lock<std::mutex> lock(mutex_);;) {
            start_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (rank >= size_) continue;
            const TeamTask task = task_;
            void* const context = context_;
            const int size = size_;
            lock.unlock();
            task(context, rank, size);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex caller_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    TeamTask task_ = nullptr;
    void* context_ = nullptr;
    int size_ = 0, busy_ = 0;
    uint64_t generation_ = 0;
};

// Threads do not survive a fork, so a child process gets a pool of its own. No pool is ever destroyed: its threads may
// outlive every static object.
Pool& pool() {
    static std::mutex mutex;
    static pid_t owner = 0;
    static Pool* current = nullptr;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

struct Team {
    TeamTask task;
    void* context;
};

struct Loop {
    void (*task)(void* context, int64_t index);
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
};

thread_local bool in_team = false; // a task that asks for threads itself gets its own thread only

void run_member(TeamTask task, void* context, int rank, int size) {
    in_team = true;
    task(context, rank, size);
    in_team = false;
}

} // namespace

void run_team(int threads, TeamTask task, void* context) {
    const bool openmp_found = openmp().found();
    if (threads <= 1 || in_team || (openmp_found && forked_since_first_use())) {
        task(context, 0, 1);
        return;
    }
    Team team{task, context};
    if (openmp_found) {
        const auto member = [](void* data) {
            const Team& team = *static_cast<const Team*>(data);
            run_member(team.task, team.context, openmp().thread_num(), openmp().num_threads());
        };
        openmp().parallel(member, &team, unsigned(threads), 0);
    } else {
        const auto member = [](void* data, int rank, int size) {
            const Team& team = *static_cast<const Team*>(data);
            run_member(team.task, team.context, rank, size);
        };
        pool().run(threads, member, &team);
    }
}

void parallel_for(int threads, int64_t count, void (*task)(void* context, int64_t index), void* context) {
    if (threads > count) threads = int(count);
    if (threads <= 1) {
        for (int64_t i = 0; i < count; ++i) task(context, i);
        return;
    }
    Loop loop{task, context, count};
    const auto member = [](void* data, int, int) {
        Loop& loop = *static_cast<Loop*>(data);
        for (int64_t i; (i = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.count;)
            loop.task(loop.context, i);
    };
    run_team(threads, member, &loop);
}

void Barrier::wait(int size) {
    const unsigned generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
        if (spins > 10000) std::this_thread::yield(); // more threads than cores: let the others arrive
    }
}

} // namespace dsmr

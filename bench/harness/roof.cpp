// What a machine can do at best: multiply-adds that never leave the registers, and one stream of reads from memory.
//
// Usage: roof THREADS SECONDS MEGABYTES. Prints a JSON object: FLOP/s by type, bytes/s read by all threads together.
// Compile for the machine at hand (-O3 -march=native -pthread). A rate is the best of many short tries, so that other
// programs on the machine can only hide it, not lower it for good.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include <sys/mman.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
using Floats = float __attribute__((vector_size(WIDTH)));
using Words = std::uint64_t __attribute__((vector_size(WIDTH)));

constexpr int CHAINS = 12; // independent sums: enough to hide the latency of a multiply-add, few enough for registers
constexpr int STEPS = 200000;
volatile float float_source = 1, float_sink;
volatile std::uint64_t word_sink;

double multiply_add_floats() {
    Floats sums[CHAINS];
    const Floats factor = Floats{} + 0.5f, term = Floats{} + 1.0f;
    for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = Floats{} + (float_source + static_cast<float>(chain)); // no two alike
    for (int step = 0; step < STEPS; ++step) {
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = sums[chain] * factor + term;
    }
    for (int chain = 1; chain < CHAINS; ++chain) sums[0] += sums[chain];
    float_sink = sums[0][0];
    return 2.0 * STEPS * CHAINS * (WIDTH / 4);
}

#ifdef __AVX512BF16__
double dot_bfloats() {
    __m512 sums[CHAINS];
    const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f00)); // 0.5
    for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = _mm512_set1_ps(float_source + static_cast<float>(chain));
    for (int step = 0; step < STEPS; ++step) {
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = _mm512_dpbf16_ps(sums[chain], factor, factor);
    }
    for (int chain = 1; chain < CHAINS; ++chain) sums[0] = _mm512_add_ps(sums[0], sums[chain]);
    float_sink = _mm512_cvtss_f32(sums[0]);
    return 4.0 * STEPS * CHAINS * 16;
}
#endif

#ifdef __AMX_BF16__
bool tiles_allowed() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18; // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

double multiply_tiles() {
    struct alignas(64) {
        std::uint8_t palette = 1, start = 0, reserved[14] = {};
        std::uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } layout;
    _tile_loadconfig(&layout);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    constexpr int PRODUCTS = STEPS / 10;
    for (int step = 0; step < PRODUCTS; ++step) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float result[256];
    _tile_stored(0, result, 64);
    float_sink = result[0];
    _tile_release();
    return 4.0 * PRODUCTS * 2 * 16 * 16 * 32;
}
#endif

// A thread's own part of memory, read once from end to end in `streams` places at a time.
template <int STREAMS>
double read(const Words* begin, std::size_t count) {
    Words sums[STREAMS] = {};
    const std::size_t length = count / STREAMS;
    for (std::size_t i = 0; i + 4 <= length; i += 4) {
#pragma GCC unroll 8
        for (int stream = 0; stream < STREAMS; ++stream) {
            const Words* at = begin + stream * length + i;
            __builtin_prefetch(at + 4096 / WIDTH);
            sums[stream] |= (at[0] | at[1]) | (at[2] | at[3]);
        }
    }
    std::uint64_t all = 0;
    for (const Words& sum : sums) all |= sum[0];
    word_sink = all;
    return static_cast<double>(length / 4 * 4) * STREAMS * WIDTH;
}

// The best rate of all threads together: work done by all over the time from the common start to the last one's end.
double best_rate(int threads, double seconds, const std::function<double(int)>& work) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    const auto until = Clock::now() + std::chrono::duration<double>(seconds);
    do {
        std::atomic<int> waiting{threads};
        std::vector<double> done(threads);
        std::vector<Clock::time_point> begun(threads), ended(threads);
        const auto run = [&](int thread) {
            --waiting;
            while (waiting > 0) std::this_thread::yield();
            begun[thread] = Clock::now();
            done[thread] = work(thread);
            ended[thread] = Clock::now();
        };
        std::vector<std::thread> others;
        for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
        run(0);
        for (auto& other : others) other.join();
        double sum = 0;
        for (double amount : done) sum += amount;
        const auto from = *std::min_element(begun.begin(), begun.end());
        const auto to = *std::max_element(ended.begin(), ended.end());
        best = std::max(best, sum / std::chrono::duration<double>(to - from).count());
    } while (Clock::now() < until);
    return best;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: roof THREADS SECONDS MEGABYTES\n");
        return 2;
    }
    const int threads = std::atoi(argv[1]);
    const double seconds = std::atof(argv[2]) / 4;
    const std::size_t bytes = static_cast<std::size_t>(std::atoll(argv[3])) << 20;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (threads < 1 || memory == MAP_FAILED) {
        std::fprintf(stderr, "roof: expected at least one thread and %s MB of free memory\n", argv[3]);
        return 1;
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    auto* words = static_cast<Words*>(memory);
    const std::size_t share = bytes / WIDTH / threads;
    for (std::size_t i = 0; i < bytes / WIDTH; ++i) words[i] = Words{} + i;

    const double floats = best_rate(threads, seconds, [](int) { return multiply_add_floats(); });
    double bfloats = floats; // without instructions for bf16 its products are those of floats
#ifdef __AVX512BF16__
    bfloats = std::max(bfloats, best_rate(threads, seconds, [](int) { return dot_bfloats(); }));
#endif
#ifdef __AMX_BF16__
    if (tiles_allowed()) bfloats = std::max(bfloats, best_rate(threads, seconds, [](int) { return multiply_tiles(); }));
#endif
    const double one = best_rate(threads, seconds, [&](int i) { return read<1>(words + i * share, share); });
    const double four = best_rate(threads, seconds, [&](int i) { return read<4>(words + i * share, share); });
    std::printf("{\"fp32\": %.6g, \"bf16\": %.6g, \"read\": %.6g}\n", floats, bfloats, std::max(one, four));
}

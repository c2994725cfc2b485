// Everything that is compiled once per instruction set: how a call is cut into tasks, and the tasks.
//
// Tasks are cut by the shapes of a call alone and every sum has a fixed order, so results do not depend on the threads.
#include "kernels.hpp"

#include <type_traits>

#include "append.hpp"
#include "backward.hpp"
#include "forward.hpp"
#include "threads.hpp"

namespace dsmr::DSMR_ISA {
namespace {

#ifdef __AVX512BF16__
using HalfRows = PairedRows; // what bf16 calls are computed with
#else
using HalfRows = SingleRows;
#endif

Scratch& thread_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

int64_t rows_per_head(const DsmrCall& call) { return call.tokens * (call.heads / call.kv_heads); }

// Runs a Pass<Math, LANES> with the arithmetic of the call's type and as few lanes as hold the rows.
template <template <class, int> class Pass, class... Arguments>
bool run_tile(const DsmrCall& call, int64_t rows, const Arguments&... arguments) {
    Scratch& scratch = thread_scratch();
    const auto with = [&](auto math, auto lanes) {
        using ThisPass = Pass<decltype(math), decltype(lanes)::value>;
        if (!scratch.reserve(ThisPass::scratch_bytes(call.dim))) return false;
        ThisPass(call, arguments..., scratch).run();
        return true;
    };
    const auto with_math = [&](auto math) {
        if (rows <= 16) return with(math, std::integral_constant<int, 16>());
        if (rows <= 32) return with(math, std::integral_constant<int, 32>());
        return with(math, std::integral_constant<int, 64>());
    };
    return call.type == DSMR_BF16 ? with_math(HalfRows()) : with_math(SingleRows());
}

// One bit of shared state: did some task find no memory?
class Failure {
public:
    void note(bool succeeded) {
        if (!succeeded) __atomic_store_n(&failed_, true, __ATOMIC_RELAXED);
    }
    DsmrStatus status() const { return __atomic_load_n(&failed_, __ATOMIC_RELAXED) ? DSMR_NO_MEMORY : DSMR_OK; }

private:
    bool failed_ = false;
};

DsmrStatus check_lanes(DsmrCall& call) {
    for (int64_t b = 0; b < call.batch; ++b) {
        const Lane lane = read_lane(call, b);
        call.error[0] = b;
        if (lane.tokens < 0 || lane.tokens > call.tokens) {
            call.error[1] = lane.tokens;
            return DSMR_BAD_SEGMENT_LEN;
        }
        if (!call.window_token && lane.clock.phase + lane.tokens > call.max_segment) {
            call.error[1] = lane.clock.phase, call.error[2] = lane.tokens;
            return DSMR_SEGMENT_TOO_LONG;
        }
    }
    return DSMR_OK;
}

void write_zeros(void* tensor, const DsmrCall& call, int64_t offset) {
    std::memset(at(tensor, call.type, offset), 0, call.dim * element_bytes(call.type));
}

void append(const DsmrCall& call) {
    parallel_for(int(call.threads), call.batch * call.kv_heads, [&](int64_t task) {
        append_head(call, read_lane(call, task / call.kv_heads), task % call.kv_heads);
    });
    for (int64_t b = 0; b < call.batch; ++b) {
        const Lane lane = read_lane(call, b);
        call.written[b] = lane.clock.position + lane.tokens;
    }
}

DsmrStatus forward(DsmrCall& call) {
    if (const DsmrStatus status = check_lanes(call)) return status;
    const int64_t rows = rows_per_head(call), tiles = ceil_div(rows, WIDEST_TILE);
    Failure failure;
    parallel_for(int(call.threads), call.batch * call.kv_heads * tiles, [&](int64_t task) {
        const int64_t first = task % tiles * WIDEST_TILE, kv_head = task / tiles % call.kv_heads;
        const Lane lane = read_lane(call, task / tiles / call.kv_heads);
        const int64_t count = least(WIDEST_TILE, rows - first);
        const Tile tile = make_tile(call, lane, kv_head, first, count);
        if (tile.rows > 0) failure.note(run_tile<ForwardTile>(call, tile.rows, lane, tile));
        for (int64_t r = most(tile.rows, 0); r < count; ++r) { // absent tokens
            write_zeros(call.o, call, row_offset(tile, call, r));
            call.lse[lse_offset(tile, call, r)] = HIDDEN;
        }
    });
    // After all reads: nothing that a call writes may be seen by the same call.
    if (call.append && failure.status() == DSMR_OK) append(call);
    return failure.status();
}

// Where the shares of one head's tiles sum up the gradients of its keys.
struct KeySums {
    float* data;
    int64_t shares, tokens, pitch;

    KeyGradients of(int64_t head, int64_t share) const {
        float* const first = data + (head * shares + share) * 2 * tokens * pitch;
        return {first, first + tokens * pitch};
    }
};

// The shares' sums, added in a fixed order, to dk and dv.
void finish_keys(const DsmrCall& call, const KeySums& sums, int64_t head) {
    const int64_t lane = head / call.kv_heads, tokens = read_lane(call, lane).tokens;
    const float scale = float(__builtin_fabs(call.scale));
    alignas(ALIGNMENT) float row[padded(LARGEST_DIM)];
    const auto write = [&](void* to, float* KeyGradients::*which, int64_t token, float factor) {
        const int64_t offset = ((lane * call.tokens + token) * call.kv_heads + head % call.kv_heads) * call.dim;
        if (token >= tokens) return write_zeros(to, call, offset);
        for (int64_t d = 0; d < sums.pitch; d += WIDTH) {
            Vec total = broadcast(0.0f);
            for (int64_t share = 0; share < sums.shares; ++share) {
                total = add(total, load(sums.of(head, share).*which + token * sums.pitch + d));
            }
            store(row + d, mul(total, broadcast(factor)));
        }
        store_row(row, call.dim, at(to, call.type, offset), call.type);
    };
    for (int64_t token = 0; token < call.tokens; ++token) {
        write(call.dk, &KeyGradients::dk, token, scale);
        write(call.dv, &KeyGradients::dv, token, 1.0f);
    }
}

constexpr int64_t BACKWARD_TASKS = 16; // at least as many as this where there are tiles enough: work for several cores

DsmrStatus backward(DsmrCall& call) {
    if (const DsmrStatus status = check_lanes(call)) return status;
    const int64_t rows = rows_per_head(call), tiles = ceil_div(rows, WIDEST_TILE), heads = call.batch * call.kv_heads;
    // Tiles share sums of dk and dv in turn; without those, every tile is on its own.
    const int64_t shares = call.dk ? least(tiles, ceil_div(BACKWARD_TASKS, heads)) : tiles;
    KeySums sums{nullptr, shares, call.tokens, padded(call.dim)};
    if (call.dk) {
        const std::size_t size = std::size_t(heads * shares * 2 * sums.tokens * sums.pitch) * sizeof(float);
        sums.data = static_cast<float*>(std::aligned_alloc(ALIGNMENT, aligned(size)));
        if (!sums.data) return DSMR_NO_MEMORY;
    }
    Failure failure;
    parallel_for(int(call.threads), heads * shares, [&](int64_t task) {
        const int64_t share = task % shares, head = task / shares;
        const Lane lane = read_lane(call, head / call.kv_heads);
        const KeyGradients gradients = call.dk ? sums.of(head, share) : KeyGradients{nullptr, nullptr};
        if (call.dk) std::memset(gradients.dk, 0, std::size_t(2 * sums.tokens * sums.pitch) * sizeof(float));
        for (int64_t first = share * WIDEST_TILE; first < rows; first += shares * WIDEST_TILE) {
            const int64_t count = least(WIDEST_TILE, rows - first);
            const Tile tile = make_tile(call, lane, head % call.kv_heads, first, count);
            if (tile.rows > 0) failure.note(run_tile<BackwardTile>(call, tile.rows, lane, tile, gradients));
            for (int64_t r = most(tile.rows, 0); call.dq && r < count; ++r) { // absent tokens
                write_zeros(call.dq, call, row_offset(tile, call, r));
            }
        }
    });
    if (call.dk) parallel_for(int(call.threads), heads, [&](int64_t head) { finish_keys(call, sums, head); });
    std::free(sums.data);
    return failure.status();
}

} // namespace

extern const Kernels kernels;
const Kernels kernels{forward, backward};

} // namespace dsmr::DSMR_ISA

// Everything that is compiled once per instruction set: how a call is cut into tasks, and the tasks.
//
// Tasks are cut by the shapes of a call alone and every sum has a fixed order, so results do not depend on the threads.
#include "kernels.hpp"

#include <type_traits>

#include "append.hpp"
#include "backward.hpp"
#include "decode.hpp"
#include "forward.hpp"
#include "threads.hpp"

namespace dsmr::DSMR_ISA {
namespace {

#ifdef __AVX512BF16__
using HalfOperands = PairedOperands; // what bf16 calls are computed with
#else
using HalfOperands = SingleOperands;
#endif

Scratch& thread_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

int64_t rows_per_head(const DsmrCall& call) { return call.tokens * (call.heads / call.kv_heads); }

// Runs a Pass<Math, ROWS> with the arithmetic of the call's type and as few rows as hold the tile's.
template <template <class, int> class Pass, class... Arguments>
bool run_tile(const DsmrCall& call, int64_t rows, const Arguments&... arguments) {
    Scratch& scratch = thread_scratch();
    const auto with = [&](auto math, auto size) {
        using ThisPass = Pass<decltype(math), decltype(size)::value>;
        if (!scratch.reserve(ThisPass::scratch_bytes(call.dim))) return false;
        ThisPass(call, arguments..., scratch).run();
        return true;
    };
    const auto with_math = [&](auto math) {
        if (rows <= 16) return with(math, std::integral_constant<int, 16>());
        if (rows <= 32) return with(math, std::integral_constant<int, 32>());
        return with(math, std::integral_constant<int, 64>());
    };
    return call.type == DSMR_BF16 ? with_math(HalfOperands()) : with_math(SingleOperands());
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

// Every number that tensors bring and that addresses are computed from.
DsmrStatus check_lanes(DsmrCall& call) {
    for (int64_t b = 0; b < call.batch; ++b) {
        const Clock clock = clock_of(call, b);
        const int64_t tokens = tokens_of(call, b), horizon = *call.horizon;
        if (!clock_fits(clock.position, clock.length, clock.phase, horizon, call.archive, call.recent, call.stride,
                        call.window_token)) {
            call.error[0] = clock.position, call.error[1] = clock.length;
            call.error[2] = clock.phase, call.error[3] = horizon;
            return DSMR_BAD_CLOCK;
        }
        call.error[0] = b;
        if (tokens < 0 || tokens > call.tokens) {
            call.error[1] = tokens;
            return DSMR_BAD_SEGMENT_LEN;
        }
        if (!call.window_token && tokens > call.max_segment - clock.phase) {
            call.error[1] = clock.phase, call.error[2] = tokens;
            return DSMR_SEGMENT_TOO_LONG;
        }
        if (!starts_fit(call, b)) return DSMR_BAD_SEGMENT_START;
    }
    return DSMR_OK;
}

void write_zeros(void* tensor, const DsmrCall& call, int64_t offset) {
    std::memset(at(tensor, call.type, offset), 0, call.dim * element_bytes(call.type));
}

constexpr int64_t ALONE = 1 << 15; // elements of keys that one core is done with before another could help

void append(const DsmrCall& call) {
    const int64_t heads = call.batch * call.kv_heads;
    const int threads = heads * call.tokens * call.dim < ALONE ? 1 : int(call.threads);
    parallel_for(threads, heads, [&](int64_t task) {
        append_head(call, read_lane(call, task / call.kv_heads), task % call.kv_heads);
    });
    for (int64_t b = 0; b < call.batch; ++b) {
        const Lane lane = read_lane(call, b);
        call.written[b] = most(call.written[b], lane.clock.position + lane.tokens);
    }
}

void write_absent(const DsmrCall& call, const Tile& tile, int64_t rows) {
    for (int64_t r = most(tile.rows, 0); r < rows; ++r) {
        write_zeros(call.o, call, row_offset(tile, call, r));
        write_lse(call, tile, r, HIDDEN);
    }
}

// Few heads leave cores idle and a long memory is cut into parts, by shapes alone.
constexpr int64_t DECODE_TASKS = 16, DECODE_PART = 1024;

DsmrStatus decode(const DsmrCall& call) {
    const int64_t heads = call.batch * call.kv_heads, rows = rows_per_head(call), slots = call.archive + call.recent;
    const int64_t parts = most(1, least(ceil_div(DECODE_TASKS, heads), slots / DECODE_PART));
    const int threads = heads * slots * call.dim < ALONE ? 1 : int(call.threads);
    const int64_t size = RowSums::floats(DECODE_ROWS, call.dim);
    Scratch& scratch = thread_scratch();
    if (!scratch.reserve(heads * parts * size * sizeof(float) + ALIGNMENT)) return DSMR_NO_MEMORY;
    float* const sums = scratch.take<float>(heads * parts * size);
    const auto tile_of = [&](const Lane& lane, int64_t head) {
        return make_tile(call, lane, head % call.kv_heads, 0, rows, DECODE_ROWS);
    };
    parallel_for(threads, heads * parts, [&](int64_t task) {
        const int64_t head = task / parts, part = task % parts;
        const Lane lane = read_lane(call, head / call.kv_heads);
        const Tile tile = tile_of(lane, head);
        if (tile.rows <= 0) return;
        const int64_t entries = entries_of(lane);
        DecodeHead(call, lane, tile, RowSums::at(sums + task * size, DECODE_ROWS, call.dim))
            .run(part * entries / parts, (part + 1) * entries / parts, part == parts - 1);
    });
    for (int64_t head = 0; head < heads; ++head) {
        const Lane lane = read_lane(call, head / call.kv_heads);
        const Tile tile = tile_of(lane, head);
        if (tile.rows > 0) finish_head(call, tile, sums + head * parts * size, parts);
        write_absent(call, tile, rows);
    }
    return DSMR_OK;
}

DsmrStatus attend(const DsmrCall& call) {
    const int64_t rows = rows_per_head(call), tiles = ceil_div(rows, WIDEST_TILE);
    Failure failure;
    parallel_for(int(call.threads), call.batch * call.kv_heads * tiles, [&](int64_t task) {
        const int64_t first = task % tiles * WIDEST_TILE, kv_head = task / tiles % call.kv_heads;
        const Lane lane = read_lane(call, task / tiles / call.kv_heads);
        const int64_t count = least(WIDEST_TILE, rows - first);
        const Tile tile = make_tile(call, lane, kv_head, first, count);
        if (tile.rows > 0) failure.note(run_tile<ForwardTile>(call, tile.rows, lane, tile));
        write_absent(call, tile, count);
    });
    return failure.status();
}

DsmrStatus forward(DsmrCall& call) {
    DsmrStatus status = check_lanes(call);
    if (status == DSMR_OK) status = rows_per_head(call) <= DECODE_ROWS ? decode(call) : attend(call);
    // After all reads: nothing that a call writes may be seen by the same call.
    if (status == DSMR_OK && call.append) append(call);
    return status;
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

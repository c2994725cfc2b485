// The C interface of libdsmr_native, for dsmr/model/native: nothing throws, and everything a call needs comes with it.
#include "bounds.hpp"
#include "isa.hpp"
#include "team.hpp"
#include "layout.hpp"

#define DSMR_EXPORT extern "C" __attribute__((visibility("default")))

namespace dsmr {

#define DSMR_DECLARE(isa) \
    namespace isa {         \
    extern const Kernels kernels; \
    }
DSMR_FOR_EACH_ISA(DSMR_DECLARE)

namespace {

constexpr int ABI = 4;  // dsmr/model/native/structs.py: ABI

Choice<Kernels> make_choice() {
    Choice<Kernels> choice;
#define DSMR_OFFER(isa) choice.offer(#isa, runs_##isa(), &isa::kernels);
    DSMR_FOR_EACH_ISA(DSMR_OFFER)
    return choice;
}
Choice<Kernels> choice = make_choice();

bool valid(const Call& call) {
    for (int lane = 0; lane < call.state->lanes; ++lane) {
        const int64_t count = call.segment_len ? call.segment_len[lane] : 1;
        const int64_t token = call.tokens[lane];
        if (count != 0 && (count != 1 || token < 0 || token >= call.model->logits.rows)) return false;
    }
    return true;
}

// Does every lane's clock lead to slots of every ring?
bool clocks_fit(const Call& call) {
    const State& state = *call.state;
    for (int lane = 0; lane < state.lanes; ++lane) {
        const int64_t *clock = state.clock + lane, lanes = state.lanes;
        for (int i = 0; i < call.model->layers; ++i) {
            const Ring& ring = state.ring[i];
            if (!clock_fits(clock[0], clock[lanes], clock[2 * lanes], *ring.horizon, ring.archive, ring.recent,
                            state.stride, call.model->token_window))
                return false;
        }
    }
    return true;
}

struct TeamCall {
    const Call& call;
    Barrier barrier;
};

void run_member(void* context, int rank, int size) {
    TeamCall& team = *static_cast<TeamCall*>(context);
    choice->run(team.call, {rank, size, team.barrier});
}

// As `MemoryStack.advance` with `segment_size`, and as every back end notes what it has written.
void advance(const Call& call) {
    const Model& model = *call.model;
    const State& state = *call.state;
    for (int lane = 0; lane < state.lanes; ++lane) {
        int64_t &position = state.clock[lane], &length = state.clock[state.lanes + lane];
        int64_t& phase = state.clock[2 * state.lanes + lane];
        const int64_t count = call.segment_len ? call.segment_len[lane] : 1;
        position += count;
        length += count;
        phase = (phase + count) % model.segment;
        for (int i = 0; i < model.layers; ++i) {
            int64_t& written = state.ring[i].written[lane];
            written = std::max(written, position);
            if (int64_t* const newest = state.ring[i].tail_written) newest[lane] = std::max(newest[lane], position);
        }
    }
}

} // namespace
} // namespace dsmr

using namespace dsmr;

DSMR_EXPORT int dsmr_native_abi() { return ABI; }
DSMR_EXPORT const char* dsmr_native_compiler() { return DSMR_COMPILER; }
DSMR_EXPORT const char* dsmr_native_available() { return choice.names(); }
DSMR_EXPORT const char* dsmr_native_in_use() { return choice.in_use(); }
DSMR_EXPORT int dsmr_native_use(const char* isa) { return choice.use(isa); }

// Bytes of the structs that the caller fills in, for it to compare.
DSMR_EXPORT void dsmr_native_sizes(int64_t* sizes) {
    const int64_t values[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Ring), sizeof(State), sizeof(Call)};
    for (const int64_t value : values) *sizes++ = value;
}

// Floats that a call's scratch must have, zeros at first, for a team of up to `threads`.
DSMR_EXPORT int64_t dsmr_native_scratch(const Model* model, const State* state, int32_t threads) {
    Carver carver(nullptr);
    carve_shared(*model, *state, carver);
    for (int thread = 0; thread < threads; ++thread) carve_private(*model, *state, carver);
    return carver.used;
}

// 0; or, and nothing is done, 1 if a token is no id or a segment_len neither 0 nor 1, 2 if a clock leads out of a ring.
DSMR_EXPORT int32_t dsmr_native_step(const Call* call) {
    if (!valid(*call)) return 1;
    if (!clocks_fit(*call)) return 2;
    TeamCall team{*call, {}};
    run_team(call->threads, run_member, &team);
    advance(*call);
    return 0;
}

// The C interface of the library, and the choice of instruction set behind it.
#include <cstddef>
#include <cstring>

#include "isa.hpp"
#include "kernels.hpp"

#define DSMR_DECLARE(isa)                                                                                              \
    namespace dsmr::isa {                                                                                              \
    extern const Kernels kernels;                                                                                      \
    }
DSMR_FOR_EACH_ISA(DSMR_DECLARE)

#define DSMR_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

dsmr::Choice<dsmr::Kernels> make_choice() {
    dsmr::Choice<dsmr::Kernels> choice;
#define DSMR_OFFER(isa) choice.offer(#isa, dsmr::runs_##isa(), &dsmr::isa::kernels);
    DSMR_FOR_EACH_ISA(DSMR_OFFER)
    return choice;
}

dsmr::Choice<dsmr::Kernels> choice = make_choice();

struct Field {
    const char* name;
    std::size_t offset;
};
#define DSMR_AT(field) {#field, offsetof(DsmrCall, field)}
#define DSMR_AT_TENSOR(x) DSMR_AT(x.data), DSMR_AT(x.lane), DSMR_AT(x.token), DSMR_AT(x.head)
#define DSMR_AT_RING(x)                                                                                                \
    DSMR_AT(x.data), DSMR_AT(x.lane), DSMR_AT(x.head), DSMR_AT(x.slot), DSMR_AT(x.scale), DSMR_AT(x.scale_lane),       \
            DSMR_AT(x.scale_head)
constexpr Field FIELDS[] = {
        DSMR_AT_RING(ring_k), DSMR_AT_RING(ring_v), DSMR_AT(written), DSMR_AT(clock), DSMR_AT(horizon), DSMR_AT(batch),
        DSMR_AT(kv_heads), DSMR_AT(dim), DSMR_AT(archive), DSMR_AT(recent), DSMR_AT(max_segment), DSMR_AT(stride),
        DSMR_AT(keep_random), DSMR_AT(ring_type), DSMR_AT(type), DSMR_AT(tokens), DSMR_AT(heads), DSMR_AT(window_token),
        DSMR_AT(append), DSMR_AT(scale), DSMR_AT(softcap), DSMR_AT_TENSOR(q), DSMR_AT_TENSOR(k), DSMR_AT_TENSOR(v),
        DSMR_AT(o), DSMR_AT(lse), DSMR_AT(segment_start), DSMR_AT(segment_len), DSMR_AT(start_bytes),
        DSMR_AT(len_bytes), DSMR_AT(slopes), DSMR_AT(threads), DSMR_AT_TENSOR(grad_o), DSMR_AT(grad_lse), DSMR_AT(dq),
        DSMR_AT(dk), DSMR_AT(dv), DSMR_AT(error), {"", sizeof(DsmrCall)}};

} // namespace

DSMR_EXPORT int dsmr_kernels_abi() { return DSMR_KERNELS_ABI; }
DSMR_EXPORT const char* dsmr_kernels_compiler() { return DSMR_COMPILER; }
DSMR_EXPORT const char* dsmr_kernels_available() { return choice.names(); }
DSMR_EXPORT const char* dsmr_kernels_in_use() { return choice.in_use(); }
DSMR_EXPORT int dsmr_kernels_use(const char* isa) { return choice.use(isa); }

// Where a field of a call lies, for tests of those who fill one in; "": behind the last. -1 if there is none.
DSMR_EXPORT int64_t dsmr_kernels_offset(const char* name) {
    for (const Field& field : FIELDS) {
        if (std::strcmp(field.name, name) == 0) return int64_t(field.offset);
    }
    return -1;
}

// A DsmrStatus each.
DSMR_EXPORT int dsmr_kernels_forward(DsmrCall* call) { return choice->forward(*call); }
// A forward pass that differs from an earlier one in addresses alone.
DSMR_EXPORT int dsmr_kernels_repeat(const DsmrCall* earlier, int64_t threads, void* q, void* k, void* v, void* o,
                                    void* ring_k, void* ring_v, float* k_scale, float* v_scale, int64_t* written,
                                    const int64_t* clock, const int64_t* horizon) {
    DsmrCall call = *earlier;
    call.threads = threads;
    call.q.data = q, call.k.data = k, call.v.data = v, call.o = o;
    call.ring_k.data = ring_k, call.ring_v.data = ring_v, call.ring_k.scale = k_scale, call.ring_v.scale = v_scale;
    call.written = written, call.clock = clock, call.horizon = horizon;
    return choice->forward(call);
}
DSMR_EXPORT int dsmr_kernels_backward(DsmrCall* call) { return choice->backward(*call); }

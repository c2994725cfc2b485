// The C interface of the library, and the choice of instruction set behind it.
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

} // namespace

DSMR_EXPORT int dsmr_kernels_abi() { return DSMR_KERNELS_ABI; }
DSMR_EXPORT const char* dsmr_kernels_compiler() { return DSMR_COMPILER; }
DSMR_EXPORT const char* dsmr_kernels_available() { return choice.names(); }
DSMR_EXPORT const char* dsmr_kernels_in_use() { return choice.in_use(); }
DSMR_EXPORT int dsmr_kernels_use(const char* isa) { return choice.use(isa); }

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

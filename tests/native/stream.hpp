// Feeds a plan to the kernels through their C interface, with every buffer exactly as large as the interface says
// and at the border of a page that must not be touched.
#pragma once

#include <vector>

#include "api.h"
#include "memory.hpp"
#include "plan.hpp"

extern "C" {
const char* dsmr_kernels_available();
const char* dsmr_kernels_compiler();
int dsmr_kernels_use(const char* isa);
int dsmr_kernels_forward(DsmrCall* call); // a DsmrStatus
int dsmr_kernels_backward(DsmrCall* call);
}

namespace driver {

// Numbers of a type.
class Buffer {
public:
    Buffer(Type type, int64_t count, Edge edge) : type_(type), memory_(count * size(type), edge) {}
    void* data() const { return memory_.data(); }
    double get(int64_t index) const { return driver::get(type_, data(), index); }
    void put(int64_t index, double x) { driver::put(x, type_, data(), index); }
    bool operator==(const Buffer& other) const { return type_ == other.type_ && memory_ == other.memory_; }

private:
    Type type_;
    Memory memory_;
};

// A layer's ring and clock, as dsmr_kernels.MemoryStack makes them.
struct Ring {
    Ring(const Plan& plan, Edge edge);
    void describe(const Plan& plan, DsmrCall& call);

    int64_t archive, recent, slots;
    Buffer k, v, k_scale, v_scale;
    Array<int64_t> written, clock, horizon;
};

// The tensors of one call of up to `tokens` tokens a lane.
struct Tensors {
    // gap: elements between the tokens of q, k, v and grad_o
    Tensors(const Plan& plan, int tokens, int gap, Edge edge);
    void describe(const Plan& plan, DsmrCall& call);

    int tokens, gap;
    Buffer q, k, v, grad_o, grad_lse, o, lse, dq, dk, dv;
    Array<float> slopes;
};

// One lane's results, laid out as `Numbers`.
struct Output {
    std::vector<double> out, lse, q_grad, k_grad, v_grad;
};

// Ways to make the same calls.
struct Way {
    int threads;
    Edge edge;   // where in memory everything lies
    int gap;     // see Tensors
    bool narrow; // describe ragged input in 4-byte integers, and always; else in 8-byte ones, and where it is ragged
};

// Every segment forward and backward. Throws std::runtime_error if a call fails or padding has a result.
std::vector<Output> run(const Plan& plan, const std::vector<Numbers>& numbers, const Way& way);

} // namespace driver

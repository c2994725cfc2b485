#include "stream.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace driver {
namespace {

// One call's part of the plan: how many tokens each lane reads, and where their pieces begin.
struct Part {
    std::vector<int64_t> taken, starts; // [lane], [lane, tokens]
    std::vector<bool> resets;            // lanes that begin a piece with their first token
    int tokens = 1;
};

class Feeder {
public:
    Feeder(const Plan& plan, const std::vector<Numbers>& numbers, const Way& way)
        : plan(plan), numbers(numbers), way(way), gap(way.gap), ring(plan, way.edge), done(plan.lanes()) {
        for (const Numbers& lane : numbers) {
            const std::vector<double> q(lane.q.size()), k(lane.k.size()), lse(lane.lse_grad.size());
            outputs.push_back({q, lse, q, k, k});
        }
    }

    std::vector<Output> run() {
        for (const std::vector<int>& counts : plan.segments) {
            // A segment of no tokens is a call, too.
            const int longest = std::max(1, *std::max_element(counts.begin(), counts.end()));
            const int steps = plan.steps ? plan.steps : longest;
            for (int first = 0; first < longest; first += steps) feed(part(counts, first, steps));
            std::fill(phase(0), phase(0) + plan.lanes(), 0);
        }
        return std::move(outputs);
    }

private:
    int64_t* length(int lane) { return &ring.clock[plan.lanes() + lane]; }
    int64_t* phase(int lane) { return &ring.clock[2 * plan.lanes() + lane]; }

    // The index of the lane's n-th token in its piece.
    int index(int lane, int64_t n) const {
        for (const int piece : plan.pieces[lane]) {
            if (n < piece) return int(n);
            n -= piece;
        }
        throw std::logic_error("the plan has fewer tokens in pieces than in segments");
    }

    Part part(const std::vector<int>& counts, int first, int steps) const {
        Part part;
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            const int taken = std::clamp(counts[lane] - first, 0, steps);
            part.taken.push_back(taken);
            part.tokens = std::max(part.tokens, taken);
            part.resets.push_back(taken && index(lane, done[lane]) == 0);
        }
        for (int lane = 0; lane < plan.lanes(); ++lane)
            for (int64_t i = 0, start = 0; i < part.tokens; ++i) {
                if (i && i < part.taken[lane] && index(lane, done[lane] + i) == 0) start = i;
                part.starts.push_back(start);
            }
        return part;
    }

    void feed(const Part& part) {
        Tensors tensors(plan, part.tokens, gap, way.edge);
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            if (part.resets[lane]) *length(lane) = *phase(lane) = 0;
            load(part, lane, tensors);
        }
        DsmrCall call = {};
        ring.describe(plan, call);
        tensors.describe(plan, call);
        call.append = 1;
        call.threads = way.threads;
        const Array<int64_t> starts(part.starts, way.edge), taken(part.taken, way.edge);
        const Array<int32_t> narrow_starts(part.starts, way.edge), narrow_taken(part.taken, way.edge);
        if (way.narrow) {
            call.segment_start = narrow_starts.data();
            call.segment_len = narrow_taken.data();
            call.start_bytes = call.len_bytes = sizeof(int32_t);
        } else {
            if (*std::max_element(starts.begin(), starts.end())) call.segment_start = starts.data();
            if (*std::min_element(taken.begin(), taken.end()) < part.tokens) call.segment_len = taken.data();
            call.start_bytes = call.len_bytes = sizeof(int64_t);
        }
        if (const int status = dsmr_kernels_forward(&call)) fail("forward", status);
        if (const int status = dsmr_kernels_backward(&call)) fail("backward", status);
        differentiate_alone(call, tensors);
        for (const double poison : {double(NAN), double(INFINITY)}) hide(part, call, poison);
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            save(part, lane, tensors);
            advance(part, lane);
        }
    }

    // Gradients of q alone and of k and v alone are those of all three.
    void differentiate_alone(DsmrCall call, const Tensors& together) const {
        const Tensors alone(plan, together.tokens, gap, way.edge);
        call.dq = alone.dq.data();
        call.dk = call.dv = nullptr;
        if (const int status = dsmr_kernels_backward(&call)) fail("backward of q", status);
        call.dq = nullptr;
        call.dk = alone.dk.data();
        call.dv = alone.dv.data();
        if (const int status = dsmr_kernels_backward(&call)) fail("backward of k and v", status);
        if (!(alone.dq == together.dq && alone.dk == together.dk && alone.dv == together.dv))
            throw std::runtime_error("gradients depend on which others are wanted");
    }

    // Every lane's middle token, key and value, is made unfit. What sees it may be, too; nothing else may show it: rows
    // before it and rows of later pieces, and the gradients of the keys that only those see.
    void hide(const Part& part, DsmrCall call, double poison) const {
        Tensors tensors(plan, part.tokens, gap, way.edge);
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            load(part, lane, tensors);
            if (!part.taken[lane]) continue;
            const int64_t token = lane * int64_t(part.tokens) + part.taken[lane] / 2;
            const int per_token = plan.kv_heads * plan.dim;
            for (int64_t j = 0; j < per_token; ++j) {
                tensors.k.put(token * (per_token + gap) + j, poison);
                tensors.v.put(token * (per_token + gap) + j, poison);
            }
        }
        DsmrCall other = call;
        tensors.describe(plan, other);
        other.append = 0;
        if (const int status = dsmr_kernels_forward(&other)) fail("forward", status);
        if (const int status = dsmr_kernels_backward(&other)) fail("backward", status);
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            const int64_t bad = part.taken[lane] / 2, piece = start(part, lane, bad);
            for (int64_t i = 0; i < part.taken[lane]; ++i) {
                const bool later = start(part, lane, i) > bad; // a piece that began after it
                if (i < bad || later) expect_finite(part, lane, i, plan.heads(), {&tensors.o, &tensors.dq});
                // Keys of later pieces, and of earlier ones, which no row that saw it sees.
                if (later || i < piece) expect_finite(part, lane, i, plan.kv_heads, {&tensors.dk, &tensors.dv});
            }
        }
    }

    int64_t start(const Part& part, int lane, int64_t token) const {
        return part.starts[lane * int64_t(part.tokens) + token];
    }

    void expect_finite(const Part& part, int lane, int64_t i, int heads, std::vector<const Buffer*> results) const {
        const int64_t row = (lane * int64_t(part.tokens) + i) * heads * plan.dim;
        for (const Buffer* result : results)
            for (int64_t j = 0; j < heads * plan.dim; ++j)
                if (!std::isfinite(result->get(row + j))) throw std::runtime_error("what is hidden was seen");
    }

    [[noreturn]] static void fail(const char* what, int status) {
        throw std::runtime_error(std::string(what) + " returned " + std::to_string(status));
    }

    // Padding stays NaN.
    void load(const Part& part, int lane, Tensors& tensors) const {
        const auto copy = [&](const std::vector<double>& from, int per_token, Buffer& to) {
            for (int64_t i = 0; i < part.taken[lane]; ++i)
                for (int j = 0; j < per_token; ++j) {
                    const int64_t place = (int64_t(lane) * part.tokens + i) * (per_token + gap) + j;
                    to.put(place, from[(done[lane] + i) * per_token + j]);
                }
        };
        copy(numbers[lane].q, plan.heads() * plan.dim, tensors.q);
        copy(numbers[lane].k, plan.kv_heads * plan.dim, tensors.k);
        copy(numbers[lane].v, plan.kv_heads * plan.dim, tensors.v);
        copy(numbers[lane].out_grad, plan.heads() * plan.dim, tensors.grad_o);
        for (int head = 0; head < plan.heads(); ++head)
            for (int64_t i = 0; i < part.taken[lane]; ++i) {
                const double x = numbers[lane].lse_grad[(done[lane] + i) * plan.heads() + head];
                tensors.grad_lse.put(by_head(part, lane, head, i), x);
            }
    }

    int64_t by_head(const Part& part, int lane, int head, int64_t i) const {
        return (int64_t(lane) * plan.heads() + head) * part.tokens + i;
    }

    void save(const Part& part, int lane, const Tensors& tensors) {
        const auto copy = [&](const Buffer& from, int per_token, std::vector<double>& to) {
            for (int64_t i = 0; i < part.tokens; ++i)
                for (int j = 0; j < per_token; ++j) {
                    const double x = from.get((int64_t(lane) * part.tokens + i) * per_token + j);
                    if (i < part.taken[lane])
                        to[(done[lane] + i) * per_token + j] = x;
                    else if (x != 0)
                        throw std::runtime_error("padding has a result");
                }
        };
        copy(tensors.o, plan.heads() * plan.dim, outputs[lane].out);
        copy(tensors.dq, plan.heads() * plan.dim, outputs[lane].q_grad);
        copy(tensors.dk, plan.kv_heads * plan.dim, outputs[lane].k_grad);
        copy(tensors.dv, plan.kv_heads * plan.dim, outputs[lane].v_grad);
        for (int head = 0; head < plan.heads(); ++head)
            for (int64_t i = 0; i < part.tokens; ++i) {
                const double x = tensors.lse.get(by_head(part, lane, head, i));
                if (i < part.taken[lane])
                    outputs[lane].lse[(done[lane] + i) * plan.heads() + head] = x;
                else if (x != -INFINITY)
                    throw std::runtime_error("padding has a log-sum-exp");
            }
    }

    // As MemoryStack.advance.
    void advance(const Part& part, int lane) {
        const int64_t taken = part.taken[lane], start = taken ? part.starts[lane * part.tokens + taken - 1] : 0;
        ring.clock[lane] += taken;
        *length(lane) = start ? taken - start : *length(lane) + taken;
        *phase(lane) += taken;
        done[lane] += taken;
        if (ring.written[lane] != ring.clock[lane]) throw std::runtime_error("the ring does not know what was written");
    }

    const Plan& plan;
    const std::vector<Numbers>& numbers;
    const Way way;
    const int gap;
    Ring ring;
    std::vector<int64_t> done;
    std::vector<Output> outputs;
};

} // namespace

// Slots as in dsmr_kernels/geometry.py.
Ring::Ring(const Plan& plan, Edge edge)
    : archive(plan.horizon + (plan.longest() + plan.stride - 3) / plan.stride + 2),
      recent(plan.stride > 1 ? plan.longest() : 0),
      slots(archive + recent),
      k(plan.storage, plan.lanes() * plan.kv_heads * slots * plan.dim, edge),
      v(plan.storage, plan.lanes() * plan.kv_heads * slots * plan.dim, edge),
      k_scale(Type::float32, plan.lanes() * plan.kv_heads * slots, edge),
      v_scale(Type::float32, plan.lanes() * plan.kv_heads * slots, edge),
      written(std::vector<int64_t>(plan.lanes()), edge),
      clock(std::vector<int64_t>(3 * plan.lanes()), edge),
      horizon(std::vector<int64_t>{plan.horizon}, edge) {}

void Ring::describe(const Plan& plan, DsmrCall& call) {
    const bool quantised = plan.storage != plan.type;
    const auto tensor = [&](const Buffer& values, const Buffer& scales) {
        DsmrRing ring = {};
        ring.data = values.data();
        ring.slot = plan.dim;
        ring.head = slots * plan.dim;
        ring.lane = plan.kv_heads * ring.head;
        if (quantised) {
            ring.scale = static_cast<float*>(scales.data());
            ring.scale_head = slots;
            ring.scale_lane = plan.kv_heads * slots;
        }
        return ring;
    };
    call.ring_k = tensor(k, k_scale);
    call.ring_v = tensor(v, v_scale);
    call.ring_type = int64_t(plan.storage);
    call.written = written.data();
    call.clock = clock.data();
    call.horizon = horizon.data();
    call.archive = archive;
    call.recent = recent;
    call.max_segment = plan.longest();
    call.stride = plan.stride;
    call.keep_random = plan.keep_random;
}

namespace {
int64_t spread(int64_t tokens, int64_t per_token, int gap) { return tokens * (per_token + gap) - gap; }
} // namespace

Tensors::Tensors(const Plan& plan, int tokens, int gap, Edge edge)
    : tokens(tokens),
      gap(gap),
      q(plan.type, spread(plan.lanes() * tokens, plan.heads() * plan.dim, gap), edge),
      k(plan.type, spread(plan.lanes() * tokens, plan.kv_heads * plan.dim, gap), edge),
      v(plan.type, spread(plan.lanes() * tokens, plan.kv_heads * plan.dim, gap), edge),
      grad_o(plan.type, spread(plan.lanes() * tokens, plan.heads() * plan.dim, gap), edge),
      grad_lse(Type::float32, plan.lanes() * tokens * plan.heads(), edge),
      o(plan.type, plan.lanes() * tokens * plan.heads() * plan.dim, edge),
      lse(Type::float32, plan.lanes() * tokens * plan.heads(), edge),
      dq(plan.type, plan.lanes() * tokens * plan.heads() * plan.dim, edge),
      dk(plan.type, plan.lanes() * tokens * plan.kv_heads * plan.dim, edge),
      dv(plan.type, plan.lanes() * tokens * plan.kv_heads * plan.dim, edge),
      slopes(plan.slopes, edge) {}

void Tensors::describe(const Plan& plan, DsmrCall& call) {
    const auto tensor = [&](const Buffer& buffer, int64_t heads) {
        const int64_t token = heads * plan.dim + gap;
        return DsmrTensor{buffer.data(), tokens * token, token, plan.dim};
    };
    call.batch = plan.lanes();
    call.kv_heads = plan.kv_heads;
    call.dim = plan.dim;
    call.type = int64_t(plan.type);
    call.tokens = tokens;
    call.heads = plan.heads();
    call.q = tensor(q, plan.heads());
    call.k = tensor(k, plan.kv_heads);
    call.v = tensor(v, plan.kv_heads);
    call.grad_o = tensor(grad_o, plan.heads());
    call.o = o.data();
    call.lse = static_cast<float*>(lse.data());
    call.grad_lse = static_cast<float*>(grad_lse.data());
    call.dq = dq.data();
    call.dk = dk.data();
    call.dv = dv.data();
    call.slopes = plan.slopes.empty() ? nullptr : slopes.data();
    call.scale = plan.scale;
    call.softcap = plan.softcap;
    call.window_token = plan.token_window;
}

std::vector<Output> run(const Plan& plan, const std::vector<Numbers>& numbers, const Way& way) {
    return Feeder(plan, numbers, way).run();
}

} // namespace driver

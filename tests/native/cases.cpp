#include "cases.hpp"

#include "stream.hpp"

namespace driver {
namespace {

void fill(Buffer& buffer, int64_t count, double scale, Random& random) {
    for (int64_t i = 0; i < count; ++i) buffer.put(i, scale * (random.between(-8, 8))); // exact in every type
}

Case make(const std::string& name, Type type, Type storage, int tokens, int64_t memory, bool backward) {
    Plan plan;
    plan.pieces = {{tokens}};
    plan.segments = {{tokens}};
    plan.horizon = memory;
    plan.kv_heads = 2;
    plan.group = 2;
    plan.dim = 64;
    plan.type = type;
    plan.storage = storage;
    plan.scale = 0.125f;
    return {name, plan, backward};
}

} // namespace

int Case::run() const {
    const int tokens = plan.longest();
    Random random(0);
    Ring ring(plan, Edge::end);
    Tensors tensors(plan, tokens, 0, Edge::end);
    const int64_t queries = int64_t(tokens) * plan.heads(), keys = int64_t(tokens) * plan.kv_heads;
    fill(ring.k, plan.kv_heads * ring.slots * plan.dim, 1, random);
    fill(ring.v, plan.kv_heads * ring.slots * plan.dim, 1, random);
    fill(ring.k_scale, plan.kv_heads * ring.slots, 0.125, random);
    fill(ring.v_scale, plan.kv_heads * ring.slots, 0.125, random);
    fill(tensors.q, queries * plan.dim, 0.125, random);
    fill(tensors.k, keys * plan.dim, 0.125, random);
    fill(tensors.v, keys * plan.dim, 0.125, random);
    fill(tensors.grad_o, queries * plan.dim, 0.125, random);
    fill(tensors.grad_lse, queries, 0.125, random);
    ring.clock[0] = 5 * ring.archive / 2; // the memory wraps
    ring.clock[1] = plan.horizon;
    DsmrCall call = {};
    ring.describe(plan, call);
    tensors.describe(plan, call);
    call.append = 1;
    call.threads = 1;
    const int status = dsmr_kernels_forward(&call);
    return status || !backward ? status : dsmr_kernels_backward(&call);
}

std::vector<Case> cases() {
    return {
            make("training-float32", Type::float32, Type::float32, 96, 512, true),
            make("training-bfloat16", Type::bfloat16, Type::bfloat16, 96, 512, true),
            make("training-int8-ring", Type::float32, Type::int8, 96, 512, true),
            make("prompt-float32", Type::float32, Type::float32, 96, 512, false),
            make("prompt-bfloat16", Type::bfloat16, Type::bfloat16, 96, 512, false),
            make("decode-float32", Type::float32, Type::float32, 1, 2048, false),
            make("decode-bfloat16", Type::bfloat16, Type::bfloat16, 1, 2048, false),
            make("decode-float16", Type::float16, Type::float16, 1, 2048, false),
            make("decode-int8-ring", Type::float32, Type::int8, 1, 2048, false),
            make("decode-float8-ring", Type::float32, Type::float8_e4m3, 1, 2048, false),
    };
}

} // namespace driver

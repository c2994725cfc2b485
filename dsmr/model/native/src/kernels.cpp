// One decode step of the whole model, as each thread of a team runs it. Compiled once for each instruction set.
#include "team.hpp"

#include <cmath>

#include "attention.hpp"
#include "byte_matrix.hpp"
#include "elementwise.hpp"
#include "layout.hpp"
#include "ring.hpp"
#include "tail.hpp"
#include "write.hpp"

namespace dsmr::DSMR_ISA {
namespace {

class Step {
public:
    Step(const Call& call, const Member& member)
        : call(call), model(*call.model), state(*call.state), member(member), lanes(state.lanes),
          dim(model.head_dim), group(model.heads / model.kv_heads), width(model.heads * model.head_dim),
          padded(model.logits.columns), pitch(row_pitch(model)), room(most_chunks(model, state)) {
        Carver carver(call.scratch);
        shared = carve_shared(model, state, carver);
        for (int thread = 0; thread <= member.rank; ++thread) mine = carve_private(model, state, carver);
    }

    void run() {
        embed();
        positions();
        member.wait();
        for (int i = 0; i < model.layers; ++i) {
            attention(model.layer[i], state.ring[i]);
            feed_forward(model.layer[i]);
        }
        normalise(model.norm);
        multiply(model.weights, model.logits, rows(model.logits), mine.h, lanes, call.logits, model.logits.rows);
    }

private:
    bool reads(int lane) const { return !call.segment_len || call.segment_len[lane]; }

    Share rows(const Matrix& matrix) const { return share_rows(matrix, member.rank, member.size); }

    // Lanes are shared out; those that stand still are computed like the others, from some token.
    void embed() {
        for (int lane = member.rank; lane < lanes; lane += member.size) {
            const float* row = model.embedding + (reads(lane) ? call.tokens[lane] * width : 0);
            std::copy(row, row + width, shared.x + lane * padded);
        }
    }

    // By each token's index in its piece.
    void positions() {
        const int pairs = model.turns * (model.rotary ? dim : width) / 2;
        for (int lane = 0; lane < lanes; ++lane) {
            const float index = static_cast<float>(state.clock[lanes + lane]);
            for (int i = 0; i < pairs; ++i) {
                const float angle = index * model.frequencies[i];
                mine.sine[lane * padded + i] = angle ? std::sin(angle) : 0;
                mine.cosine[lane * padded + i] = angle ? std::cos(angle) : 1;
            }
        }
    }

    void normalise(const Norm& norm) {
        for (int lane = 0; lane < lanes; ++lane)
            layer_norm(shared.x + lane * padded, norm, model.epsilon, width, padded, mine.h + lane * padded);
    }

    void attention(const Layer& layer, const Ring& ring) {
        normalise(layer.attention_norm);
        project(layer);
        member.wait();
        const OneToken token(call, ring);
        place_heads(layer, ring);
        attend_memory(ring, token);
        append(ring, token);
        keep(layer, ring);
        member.wait();
        for (int lane = 0; lane < lanes; ++lane) merge(lane, token);
        add_to_stream(layer.out, mine.attended, nullptr);
        member.wait();
    }

    void feed_forward(const Layer& layer) {
        normalise(layer.feed_forward_norm);
        const Share own = rows(layer.up);
        const int64_t hidden = layer.down.columns;
        multiply(model.weights, layer.up, own, mine.h, lanes, shared.hidden, hidden);
        for (int lane = 0; lane < lanes; ++lane)
            bias_gelu(shared.hidden + lane * hidden + own.start, layer.up_bias + own.start, own.stop - own.start);
        member.wait();
        add_to_stream(layer.down, shared.hidden, layer.down_bias);
        member.wait();
    }

    // x += matrix . from + bias, each thread its rows.
    void add_to_stream(const Matrix& matrix, const float* from, const float* bias) {
        const Share own = rows(matrix);
        multiply(model.weights, matrix, own, from, lanes, shared.change, padded);
        for (int lane = 0; lane < lanes; ++lane)
            for (int64_t row = own.start; row < own.stop; ++row)
                shared.x[lane * padded + row] += shared.change[lane * padded + row] + (bias ? bias[row] : 0);
    }

    void project(const Layer& layer) {
        const float* source = mine.h;
        if (!model.rotary) {
            add_signal();
            source = mine.positioned;
        }
        const int64_t stride = layer.query_key.rows + layer.value.rows;
        multiply(model.weights, layer.query_key, rows(layer.query_key), source, lanes, shared.qkv, stride);
        float* const v = shared.qkv + layer.query_key.rows;
        multiply(model.weights, layer.value, rows(layer.value), mine.h, lanes, v, stride);
    }

    // Vaswani et al. (2017): sines, then cosines.
    void add_signal() {
        for (int lane = 0; lane < lanes; ++lane) {
            const int64_t first = lane * padded, half = width / 2;
            for (int64_t i = 0; i < half; ++i) {
                mine.positioned[first + i] = mine.h[first + i] + mine.sine[first + i];
                mine.positioned[first + half + i] = mine.h[first + half + i] + mine.cosine[first + i];
            }
        }
    }

    const float* projected(int lane, int head) const {
        return shared.qkv + (static_cast<int64_t>(lane) * (model.heads + 2 * model.kv_heads) + head) * dim;
    }
    const float* value(int lane, int kv_head) const { return projected(lane, model.heads + model.kv_heads + kv_head); }
    // As projected, or normalised, in `room`.
    const float* head_of(const Layer& layer, int lane, int head, float* room) const {
        const float* const from = projected(lane, head);
        if (!layer.query_key_size) return from;
        normalise_head(from, dim, layer.query_key_size[head], model.head_epsilon, room);
        return room;
    }
    float* query(int lane, int head) const {
        return mine.heads + (static_cast<int64_t>(lane) * (model.heads + model.kv_heads) + head) * pitch;
    }
    const float* key(int lane, int kv_head) const { return query(lane, model.heads + kv_head); }

    void place_heads(const Layer& layer, const Ring& ring) {
        const Tail tail(state, ring, model.kv_heads, dim);
        const float query_scale = LOG2E / std::sqrt(static_cast<float>(dim));  // logits to base 2
        for (int lane = 0; lane < lanes; ++lane)
            for (int head = 0; head < model.heads + model.kv_heads; ++head) {
                const float scale = head < model.heads ? query_scale : 1;
                const int kv_head = head < model.heads ? head / group : head - model.heads;
                const float* const from = head >= model.heads && tail.shifts(kv_head)
                                                  ? tail.read(lane, kv_head, mine.head)
                                                  : head_of(layer, lane, head, mine.head);
                float* to = query(lane, head);
                const int64_t turn = lane * padded + (model.turns > 1 ? kv_head * dim / 2 : 0);
                if (model.rotary)
                    rotate(from, mine.cosine + turn, mine.sine + turn, dim, scale, to);
                else
                    std::transform(from, from + dim, to, [&](float x) { return x * scale; });
                std::fill(to + dim, to + pitch, 0.0f);
            }
    }

    // Some visible slots of one lane and KV head; `chunk` numbers them.
    struct Task {
        int lane, kv_head;
        int64_t chunk, slot, count;
    };

    template <class Visit>
    void for_each_task(const OneToken& token, const Visit& visit) const {
        for (int lane = 0; lane < lanes; ++lane) {
            const Lane seen = token.lane(lane);
            for (int kv_head = 0; kv_head < model.kv_heads; ++kv_head)
                for_each_chunk(seen, CHUNK, [&](int64_t chunk, int64_t slot, int64_t count) {
                    visit(Task{lane, kv_head, chunk, slot, count});
                });
        }
    }

    // The team shares all tasks evenly.
    void attend_memory(const Ring& ring, const OneToken& token) {
        int64_t count = 0, place = 0;
        for_each_task(token, [&](const Task&) { ++count; });
        const Share own = share(count, member.rank, member.size);
        for_each_task(token, [&](const Task& task) {
            if (place >= own.start && place < own.stop) attend_slots(ring, task);
            ++place;
        });
    }

    void attend_slots(const Ring& ring, const Task& task) {
        switch (state.type) {
            case Type::float32: return attend_typed<float>(ring, task);
            case Type::bfloat16: return attend_typed<bf16>(ring, task);
            case Type::float16: return attend_typed<fp16>(ring, task);
            case Type::int8: return attend_typed<int8_t>(ring, task);
            case Type::float8_e4m3: return attend_typed<fp8>(ring, task);
        }
    }

    template <class T>
    void attend_typed(const Ring& ring, const Task& task) {
        const int64_t row = (task.lane * model.kv_heads + task.kv_head) * (ring.archive + ring.recent) + task.slot;
        const float *k_scale = moved(ring.k_scale, row), *v_scale = moved(ring.v_scale, row);
        const T *k = static_cast<const T*>(ring.k) + row * dim, *v = static_cast<const T*>(ring.v) + row * dim;
        const KeyBlock<T> slots = {k, v, dim, dim, k_scale, v_scale, task.count, false};
        const float* q = query(task.lane, task.kv_head * group);
        attend(slots, q, group, dim, partial(task.lane, task.kv_head, task.chunk));
    }

    // The place of a chunk's partial softmax: [lanes, kv_heads, chunks].
    RowSums partial(int lane, int kv_head, int64_t chunk) const {
        const int64_t head = static_cast<int64_t>(lane) * model.kv_heads + kv_head, place = head * room + chunk;
        return RowSums::at(shared.sums + place * RowSums::floats(group, dim), group, dim);
    }

    // No task of this call sees the new token's slots, so they may be written while others read.
    void append(const Ring& ring, const OneToken& token) {
        for (int head = member.rank; head < lanes * model.kv_heads; head += member.size) {
            const int lane = head / model.kv_heads, kv_head = head % model.kv_heads;
            token.for_each_slot(token.lane(lane), [&](int64_t slot) {
                const int64_t row = head * (ring.archive + ring.recent) + slot;
                write_slot(state.type, ring.k, ring.k_scale, row, key(lane, kv_head), dim);
                write_slot(state.type, ring.v, ring.v_scale, row, value(lane, kv_head), dim);
            });
        }
    }

    // The tail's new slots are none that this step reads.
    void keep(const Layer& layer, const Ring& ring) {
        const Tail tail(state, ring, model.kv_heads, dim);
        for (int head = member.rank; head < lanes * model.kv_heads; head += member.size) {
            const int lane = head / model.kv_heads, kv_head = head % model.kv_heads;
            if (tail.shifts(kv_head) && reads(lane))
                tail.write(lane, kv_head, head_of(layer, lane, model.heads + kv_head, mine.head));
        }
    }

    // The chunks' partial softmaxes and the token's own key, in one: [heads, dim] of a lane.
    void merge(int lane, const OneToken& token) {
        const Lane seen = token.lane(lane);
        const int64_t chunks = count_chunks(seen, CHUNK);
        const int own = token.sees_itself(seen); // a part of its own
        for (int head = 0; head < model.heads; ++head) {
            const int kv_head = head / group, row = head % group;
            const float logit = own ? dot_product(key(lane, kv_head), query(lane, head), dim) : HIDDEN;
            const auto part = [&](int64_t i) {
                if (i < own) return Part{value(lane, kv_head), logit, 1.0f};
                return partial(lane, kv_head, i - own).part(row, dim);
            };
            merge_parts(own + chunks, dim, mine.attended + lane * padded + head * dim, part);
        }
    }

    const Call& call;
    const Model& model;
    const State& state;
    const Member& member;
    const int lanes, dim, group, width;
    const int64_t padded, pitch, room;
    Shared shared;
    Private mine;
};

void run(const Call& call, const Member& member) { Step(call, member).run(); }

} // namespace

extern const Kernels kernels{run};

} // namespace dsmr::DSMR_ISA

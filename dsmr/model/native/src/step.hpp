// What the caller describes: the packed model, the memory it reads and writes, and one call.
// dsmr/model/native/structs.py mirrors these structs field by field; dsmr_native_sizes lets it check that.
#pragma once

#include <cstdint>

namespace dsmr {

enum class Type : int32_t { float32, bfloat16, float16, int8, float8_e4m3 };

// [rows, columns], row after row; int8 has a scale for each row: what stands for a value is value * scale.
struct Matrix {
    const void* values;
    const float* scales;
    int64_t rows, columns;
};

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Matrix query_key, value, out, up, down;
    Norm attention_norm, feed_forward_norm;
    const float *up_bias, *down_bias;
    const float* query_key_size; // [heads + kv_heads]: the root mean square of each head's q and k, or null: as they come
};

struct Model {
    const Layer* layer;
    Matrix logits;      // [vocab, width]: the embedding, packed like every other matrix
    const float* embedding;   // the same, exact: a token looks up one row
    Norm norm;
    const float* frequencies; // [turns, size / 2]: radians a token; size is head_dim (rotary) or width (sinusoidal)
    float epsilon;      // of every LayerNorm
    float head_epsilon; // of the normalisation of q and k
    Type weights;       // of every matrix
    int32_t layers, heads, kv_heads, head_dim;
    int32_t turns;        // 1: all heads turn alike; or kv_heads
    int32_t rotary;       // else sinusoidal
    int32_t token_window;   // else a segment's
    int64_t segment;
};

// One layer's memory: `dsmr_kernels.RingMemory`. [lanes, kv_heads, archive + recent, head_dim].
struct Ring {
    void *k, *v;
    float *k_scale, *v_scale; // [lanes, kv_heads, archive + recent], quantised types only
    int64_t* written;     // [lanes]
    const int64_t* horizon;   // one number
    int64_t archive, recent;
    void* tail;           // [lanes, shifted KV heads, tail_slots, head_dim], or null if keys stay
    int64_t* tail_written;    // [lanes]
};

struct State {
    const Ring* ring;
    int64_t* clock; // [3, lanes]: position, length, phase
    Type type;    // of every ring
    int32_t lanes;
    int64_t stride;
    int32_t keep_random;
    Type tail_type;       // of every tail: float32, bfloat16 or float16
    int64_t tail_slots;
    const int64_t* key_shift; // [kv_heads]: tokens by which each head's keys are shifted, or null if keys stay
};

struct Call {
    const Model* model;
    const State* state;
    const int64_t* tokens;    // [lanes]
    const int64_t* segment_len; // [lanes]: 1, or 0 for a lane that stands still; null: all 1
    float* logits;        // [lanes, vocab]
    float* scratch;       // dsmr_native_scratch(model, state, threads) floats
    int32_t threads;
};

} // namespace dsmr

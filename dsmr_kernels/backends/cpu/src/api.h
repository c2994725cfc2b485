/* One call of recurrent attention as plain data. Python fills it in (../structs.py mirrors it), so every member takes eight bytes
 * and their order is part of the interface: raise DSMR_KERNELS_ABI with any change. Strides count elements. Tensors
 * without strides are contiguous; the last dimension always is. */
#pragma once

#include <stdint.h>

#define DSMR_KERNELS_ABI 5

typedef enum { DSMR_FP32, DSMR_BF16, DSMR_FP16, DSMR_INT8, DSMR_FP8 } DsmrType;

/* What a call returns; `error` of the call holds numbers for the message. */
typedef enum {
    DSMR_OK,
    DSMR_BAD_SEGMENT_LEN,  /* error: lane, value */
    DSMR_SEGMENT_TOO_LONG, /* error: lane, phase, tokens */
    DSMR_NO_MEMORY,        /* the machine has not enough for scratch space */
    DSMR_BAD_CLOCK,        /* error: position, length, phase, horizon */
    DSMR_BAD_SEGMENT_START, /* error: lane */
} DsmrStatus;

/* [batch, tokens, heads, dim] */
typedef struct {
    void* data;
    int64_t lane, token, head;
} DsmrTensor;

/* The ring: [batch, kv_heads, slots, dim] and scales [batch, kv_heads, slots] (null unless quantised). */
typedef struct {
    void* data;
    int64_t lane, head, slot;
    float* scale;
    int64_t scale_lane, scale_head;
} DsmrRing;

typedef struct {
    DsmrRing ring_k, ring_v;
    int64_t* written;       /* [batch] */
    const int64_t* clock;   /* [3, batch]: position, length, phase */
    const int64_t* horizon; /* one number */
    int64_t batch, kv_heads, dim;
    int64_t archive, recent, max_segment, stride, keep_random;
    int64_t ring_type;

    int64_t type, tokens, heads, window_token, append;
    double scale, softcap;
    DsmrTensor q, k, v;
    void* o;                   /* [batch, tokens, heads, dim] */
    float* lse;                /* [batch, heads, tokens], or null: not wanted */
    const void* segment_start; /* [batch, tokens] or null */
    const void* segment_len;   /* [batch] or null */
    int64_t start_bytes, len_bytes;
    const float* slopes; /* [heads] or null */
    int64_t threads;

    DsmrTensor grad_o;
    const float* grad_lse; /* [batch, heads, tokens] */
    void *dq, *dk, *dv;    /* contiguous, of the shapes of q and k; null if not wanted */

    int64_t error[4];
} DsmrCall;

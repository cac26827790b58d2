// What a caller hands over, mirrored field by field by ctypes structures on the Python side:
// README.md says which. Every address is the caller's, and must stay valid during a call.
#pragma once
#include <cstdint>

// Weights [out, in] of one expert in one layer; q_norm holds the scale of attention.
struct Layer {
    const float *q, *q_bias, *k, *k_bias, *v, *v_bias, *q_norm, *k_norm, *out, *out_bias;
    const float *norm, *norm_bias, *text_q, *text_q_bias, *text_out, *text_out_bias;
    const float *up, *up_bias, *down, *down_bias;
};

struct Expert {
    int64_t width, ffn, tokens;            // tokens of its stream, per observation
    const Layer* layers;
    const float* rotation;                 // [tokens, head / 2, 2]: cosine, sine
    const float *text_keys, *text_values;  // [layers, B, H, rows, head]
};

// Tokens of an expert's stream; where they stand in the cache, and up to where they see it.
struct Piece {
    int64_t expert, start, count, place, end;
};

// Floats from one to the next; the last axis, the width of a head, is dense.
struct Strides {
    int64_t layer, row, head, place;
};

// One pass over some token groups beside a cache: what stays the same from call to call.
struct Plan {
    int64_t layers, batch, heads, head, experts, pieces, text_rows, threads;
    float eps;
    const Expert* expert;
    const Piece* piece;
    float *keys, *values;  // the cache [layers, B, H, places, head]
    Strides cache, text;
    float* workspace;      // gwp_workspace_size floats
};

// Noise level of all tokens of a piece; or -1, and an int64 index [B, tokens] with its strides.
struct Noise {
    int64_t level;
    const int64_t* index;
    int64_t row, token;
};

// full 0: of the last layer only keys and values are wanted. bare: products and attention alone, to
// measure them.
struct Call {
    float* const* streams;       // per expert [B, tokens, width], in and out
    const float* const* levels;  // per expert [layers, n, 6, width]
    int64_t n, full, bare;
    const Noise* noise;          // per piece
};

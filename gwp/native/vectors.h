// Vectors of floats as wide as the processor has them, products that read a matrix as it is stored,
// and attention made of these.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 8;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
// ROWS rows of a weight times the vectors of a tile are what is summed in registers.
constexpr int TILE_VECTORS = 3;

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));

static inline vec load(const float* p) { return *(const vec*)p; }
static inline void store(float* p, vec x) { *(vec*)p = x; }
static inline vec splat(float x) { return x - vec{}; }

static int64_t vectors_of(int64_t tokens) { return (tokens + LANES - 1) / LANES; }

// The number of each lane.
static inline vec counted() {
    vec x;
    for (int l = 0; l < LANES; l++) x[l] = l;
    return x;
}
static const vec COUNT = counted();

static inline vec inverse_root(vec x) {
    for (int l = 0; l < LANES; l++) x[l] = 1.0f / std::sqrt(x[l]);
    return x;
}

// exp to 2 units in the last place, between -87 and 88.
static inline vec exponential(vec x) {
    const vec low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds
    vec n = (x * 1.44269504f + magic) - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = ((((((r * 1.9875691500e-4f) + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r
               + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r + 5.0000001201e-1f) * r * r
            + r + 1.0f;
    ivec whole = __builtin_convertvector(n, ivec);
    return y * (vec)((whole + 127) << 23);
}

static inline vec gelu(vec x) {  // tanh form
    vec u = (x + x * x * x * 0.044715f) * -1.5957691216f;
    return x / (exponential(u) + 1.0f);
}

// A matrix [M, K] in memory: row after row, or column after column (a transposed view); `step`
// numbers from one to the next.
template <bool BY_COLUMN>
struct Matrix {
    const float* data;
    int64_t step;
    const float* from(int64_t i) const { return data + (BY_COLUMN ? i : i * step); }
};

template <int R, int V, bool BY_COLUMN>
static inline __attribute__((always_inline)) void multiply(
    const float* A, int64_t step, const float* B, int64_t wide, int64_t K, vec (&sum)[R][V]
) {
    for (int64_t k = 0; k < K; k++) {
        // Rows stand one after another, so what the next ones need follows; weights come from afar.
        if (!BY_COLUMN && R == ROWS) __builtin_prefetch(A + R * step + k * R, 0, 2);
        vec b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = load(B + k * wide + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float a = BY_COLUMN ? A[k * step + r] : A[r * step + k];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] += a * b[v];
        }
    }
}

// Rows [i, i + R) of A [M, K] times B [K, V vectors], whose rows are `wide` numbers apart;
// `put(i, v, sum)` takes what comes out.
template <int R, int V, bool BY_COLUMN, class Put>
static inline __attribute__((always_inline)) void rows(
    Matrix<BY_COLUMN> A, const float* B, int64_t wide, int64_t K, int64_t i, Put put
) {
    vec sum[R][V] = {};
    multiply<R, V, BY_COLUMN>(A.from(i), A.step, B, wide, K, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) put(i + r, v, sum[r][v]);
}

// ROWS rows from `block * ROWS`, or what is left of M.
template <int V, bool BY_COLUMN, class Put>
static inline __attribute__((always_inline)) void rows_of_block(
    Matrix<BY_COLUMN> A, const float* B, int64_t wide, int64_t K, int64_t M, int64_t block, Put put
) {
    const int64_t i = block * ROWS;
    if (i + ROWS <= M) return rows<ROWS, V>(A, B, wide, K, i, put);
    for (int64_t r = i; r < M; r++) rows<1, V>(A, B, wide, K, r, put);
}

static int64_t blocks_of(int64_t M) { return (M + ROWS - 1) / ROWS; }

// One head of up to V vectors of queries [head, count], keys and values [n, head]; out [head,
// count]; scores: memory for [n, V vectors]. Rows of queries and of out are `wide` numbers apart;
// after a row of queries up to a vector more is read, never written.
template <int V>
static void attend(const float* q, const float* keys, const float* values, int64_t place, int64_t n,
                   int64_t head, int64_t wide, int64_t count, float* scores, float* out) {
    vec largest[V], total[V] = {};
    for (int v = 0; v < V; v++) largest[v] = splat(-INFINITY);
    auto score = [&](int64_t i, int v, vec sum) {
        store(scores + (i * V + v) * LANES, sum);
        largest[v] = sum > largest[v] ? sum : largest[v];
    };
    for (int64_t block = 0; block < blocks_of(n); block++)
        rows_of_block<V>(Matrix<false>{keys, place}, q, wide, head, n, block, score);
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < V; v++) {
            float* at = scores + (i * V + v) * LANES;
            vec e = exponential(load(at) - largest[v]);
            store(at, e);
            total[v] += e;
        }
    for (int v = 0; v < V; v++) total[v] = 1.0f / total[v];
    auto weigh = [&](int64_t i, int v, vec sum) {
        float* to = out + i * wide + v * LANES;
        sum *= total[v];
        if ((v + 1) * LANES <= count) store(to, sum);
        else std::memcpy(to, &sum, (count - v * LANES) * sizeof(float));
    };
    for (int64_t block = 0; block < blocks_of(head); block++)
        rows_of_block<V>(Matrix<true>{values, place}, scores, V * LANES, n, head, block, weigh);
}

// The layers of a pass in fp32 on the CPU, in one call: README.md explains how.
//
// Tokens lie along the lanes of a vector and features one after another, so that norms, softmax,
// rotations and modulation are plain arithmetic between vectors, and a product reads its weights as
// they are stored: one number of a weight times a vector of tokens. Every number is summed in one
// order whatever stands beside it, so a row of a batch does not depend on its neighbours.
//
// A buffer of n features holds, tile after tile, n rows of its vectors. Threads share the work
// between barriers.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "barrier.h"
#include "tiles.h"

class Pass {
public:
    Pass(const Plan& plan, const Call& call)
        : plan(plan), call(call), inner(plan.heads * plan.head), tiles(plan.experts),
          query_tiles(plan.experts), buffers(plan.experts) {
        std::vector<int64_t> vectors(plan.experts, 0);
        for (int64_t i = 0; i < plan.pieces; i++) {
            const int64_t e = plan.piece[i].expert;
            vectors[e] = add_tiles(plan.piece[i], call.noise[i], plan.batch, vectors[e], tiles[e],
                                   query_tiles[e]);
        }
        float* free = plan.workspace;
        auto take = [&](int64_t features, int64_t e) {
            float* taken = free;
            free += features * vectors[e] * LANES;
            return taken;
        };
        for (int64_t e = 0; e < plan.experts; e++) {
            const int64_t D = plan.expert[e].width;
            buffers[e] = {take(D, e), take(D, e), take(inner, e), take(inner, e), take(inner, e),
                          take(plan.expert[e].ffn, e), take(plan.head, e)};
        }
        scores = free;
        max_keys = plan.text_rows;
        for (int64_t i = 0; i < plan.pieces; i++) max_keys = std::max(max_keys, plan.piece[i].end);
    }

    // What thread `t` of `T` does.
    void run(int64_t t, int64_t T) const {
        float* my_scores = scores + t * max_keys * TILE_VECTORS * LANES;
        auto wait = [this, T] { barrier.wait(T); };
        auto share = [t, T](int64_t n, auto work) {
            for (int64_t u = n * t / T; u < n * (t + 1) / T; u++) work(u);
        };
        // Vectors of the tiles of an expert, one by one.
        auto columns = [&](int64_t e, auto work) {
            if (call.bare) return;
            share(tiles[e].size() * TILE_VECTORS, [&](int64_t u) {
                const Tile& p = tiles[e][u / TILE_VECTORS];
                if (u % TILE_VECTORS < p.vectors) work(p, u % TILE_VECTORS);
            });
        };
        // A product: weight [M, K] times the rows of `in`. Tiles outermost: theirs stay in a core's
        // cache while the weight passes.
        auto product = [&](int64_t e, const float* weight, int64_t M, int64_t K, const float* in,
                           auto put) {
            const int64_t blocks = blocks_of(M);
            share(tiles[e].size() * blocks, [&](int64_t u) {
                const Tile& p = tiles[e][u / blocks];
                const Matrix<false> A{weight, K};
                const float* B = at(in, K, p);
                const int64_t block = u % blocks, wide = p.vectors * LANES;
                auto into = [&](int64_t i, int v, vec sum) { put(p, i, v, sum); };
                if (p.vectors == 3) rows_of_block<3>(A, B, wide, K, M, block, into);
                else if (p.vectors == 2) rows_of_block<2>(A, B, wide, K, M, block, into);
                else rows_of_block<1>(A, B, wide, K, M, block, into);
            });
        };
        auto attention = [&](int64_t e, const float* keys, const float* values, Strides step,
                             int64_t count, float* q, float* out) {
            share(query_tiles[e].size() * plan.heads, [&](int64_t u) {
                const QueryTile& queries = query_tiles[e][u / plan.heads];
                const Tile& p = tiles[e][queries.tile];
                const int64_t h = u % plan.heads, wide = p.vectors * LANES;
                const int64_t offset = queries.row * step.row + h * step.head;
                const int64_t first = h * plan.head * wide + queries.lane;
                const int64_t V = vectors_of(queries.lanes);
                auto run = V == 3 ? attend<3> : V == 2 ? attend<2> : attend<1>;
                run(at(q, inner, p) + first, keys + offset, values + offset, step.place,
                    count ? count : p.end, plan.head, wide, queries.lanes, my_scores,
                    at(out, inner, p) + first);
            });
        };
        for (int64_t e = 0; e < plan.experts; e++)
            columns(e, [&](const Tile& p, int v) { load_stream(e, p, v); });
        for (int64_t i = 0; i < plan.layers; i++) {
            const bool last = !call.full && i == plan.layers - 1;
            const int64_t cache = i * plan.cache.layer, text = i * plan.text.layer;
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                columns(e, [&](const Tile& p, int v) { modulated_norm(e, i, p, v, 0); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const Buffers& b = buffers[e];
                const int64_t D = plan.expert[e].width;
                auto biased = [&](float* out, const float* bias) {
                    return [this, out, bias](const Tile& p, int64_t i, int v, vec sum) {
                        store(row(out, inner, p, i, v), sum + bias[i]);
                    };
                };
                product(e, w.q, inner, D, b.y, biased(b.q, w.q_bias));
                product(e, w.k, inner, D, b.y, biased(b.k, w.k_bias));
                product(e, w.v, inner, D, b.y, biased(b.v, w.v_bias));
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                columns(e, [&](const Tile& p, int v) { write_cache(e, i, p, v); });
            if (last) break;
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                attention(e, plan.keys + cache, plan.values + cache, plan.cache, 0, buffers[e].q,
                          buffers[e].k);
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.out, D, inner, buffers[e].k,
                        [&](const Tile& p, int64_t j, int v, vec sum) {
                            float* x = row(buffers[e].x, D, p, j, v);
                            const vec gate = modulation(e, i, p, 2, j, v);
                            store(x, load(x) + gate * (sum + w.out_bias[j]));
                        });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                columns(e, [&](const Tile& p, int v) { affine_norm(e, i, p, v); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                product(e, w.text_q, inner, plan.expert[e].width, buffers[e].y,
                        [&](const Tile& p, int64_t j, int v, vec sum) {
                            store(row(buffers[e].q, inner, p, j, v), sum + w.text_q_bias[j]);
                        });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                columns(e, [&](const Tile& p, int v) {
                    const vec scale = inverse_rms(at(buffers[e].q, inner, p), p, v);
                    for (int64_t j = 0; j < inner; j++) {
                        float* q = row(buffers[e].q, inner, p, j, v);
                        store(q, load(q) * scale);
                    }
                });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Expert& expert = plan.expert[e];
                attention(e, expert.text_keys + text, expert.text_values + text, plan.text,
                          plan.text_rows, buffers[e].q, buffers[e].k);
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.text_out, D, inner, buffers[e].k,
                        [&](const Tile& p, int64_t j, int v, vec sum) {
                            float* x = row(buffers[e].x, D, p, j, v);
                            store(x, load(x) + sum + w.text_out_bias[j]);
                        });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                columns(e, [&](const Tile& p, int v) { modulated_norm(e, i, p, v, 3); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t F = plan.expert[e].ffn;
                product(e, w.up, F, plan.expert[e].width, buffers[e].y,
                        [&](const Tile& p, int64_t j, int v, vec sum) {
                            store(row(buffers[e].up, F, p, j, v), gelu(sum + w.up_bias[j]));
                        });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.down, D, plan.expert[e].ffn, buffers[e].up,
                        [&](const Tile& p, int64_t j, int v, vec sum) {
                            float* x = row(buffers[e].x, D, p, j, v);
                            const vec gate = modulation(e, i, p, 5, j, v);
                            store(x, load(x) + gate * (sum + w.down_bias[j]));
                        });
            }
        }
        if (!call.full) return;
        wait();
        for (int64_t e = 0; e < plan.experts; e++)
            columns(e, [&](const Tile& p, int v) { store_stream(e, p, v); });
    }

private:
    // Of one expert: its stream, what a product reads, queries (and attention's input), keys (and
    // attention's output), values, the feed-forward's middle, and the rotation of its tokens.
    struct Buffers {
        float *x, *y, *q, *k, *v, *up, *rotation;
    };

    const Plan& plan;
    const Call& call;
    const int64_t inner;
    std::vector<std::vector<Tile>> tiles;
    std::vector<std::vector<QueryTile>> query_tiles;
    std::vector<Buffers> buffers;
    float* scores;
    int64_t max_keys;
    mutable Barrier barrier;

    static const float* at(const float* buffer, int64_t features, const Tile& p) {
        return buffer + p.offset * features * LANES;
    }
    static float* at(float* buffer, int64_t features, const Tile& p) {
        return buffer + p.offset * features * LANES;
    }
    static float* row(float* buffer, int64_t features, const Tile& p, int64_t i, int v) {
        return at(buffer, features, p) + (i * p.vectors + v) * LANES;
    }
    // Calls `work(lane of the vector, observation, token of the piece)` for each token of a vector.
    template <class Work>
    static void tokens(const Tile& p, int v, Work work) {
        const int64_t lanes = std::min<int64_t>(LANES, p.lanes - v * LANES);
        for (int64_t l = 0; l < lanes; l++)
            work(l, p.row_of(v * LANES + l), p.token_of(v * LANES + l));
    }

    // Shift, scale or gate of one feature: slots as in `Levels` of the Python side.
    vec modulation(int64_t e, int64_t layer, const Tile& p, int64_t slot, int64_t i, int v) const {
        const int64_t D = plan.expert[e].width;
        const int64_t first = v * LANES, stop = std::min(first + LANES, p.lanes);
        const float* table = call.levels[e] + (layer * call.n * 6 + slot) * D + i;
        if (p.level >= 0) return splat(table[p.level * 6 * D]);
        vec x = splat(table[p.level_of(std::min(first, p.lanes - 1)) * 6 * D]);
        if (p.level_per_row) {
            // Later observations of the vector, each from its first lane on.
            for (int64_t from = first + p.count - p.token_of(first); from < stop; from += p.count) {
                const vec level = splat(table[p.level_of(from) * 6 * D]);
                x = COUNT >= splat(float(from - first)) ? level : x;
            }
            return x;
        }
        for (int64_t l = first + 1; l < stop; l++) x[l - first] = table[p.level_of(l) * 6 * D];
        return x;
    }

    // Tokens of a stream [., tokens, n] to rows of vectors; lanes without a token are 0.
    static void transpose(const Tile& p, int64_t n, float* to,
                          const std::vector<const float*>& from) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t l = 0; l < LANES; l++)
                to[i * p.vectors * LANES + l] = from[l] ? from[l][i] : 0;
    }

    void load_stream(int64_t e, const Tile& p, int v) const {
        const int64_t D = plan.expert[e].width;
        std::vector<const float*> x(LANES, nullptr), rotation(LANES, nullptr);
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            x[l] = call.streams[e] + (b * plan.expert[e].tokens + p.start + token) * D;
            rotation[l] = plan.expert[e].rotation + (p.start + token) * plan.head;
        });
        transpose(p, D, row(buffers[e].x, D, p, 0, v), x);
        transpose(p, plan.head, row(buffers[e].rotation, plan.head, p, 0, v), rotation);
    }

    void store_stream(int64_t e, const Tile& p, int v) const {
        const int64_t D = plan.expert[e].width;
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            float* x = call.streams[e] + (b * plan.expert[e].tokens + p.start + token) * D;
            for (int64_t i = 0; i < D; i++) x[i] = row(buffers[e].x, D, p, i, v)[l];
        });
    }

    // Mean, and 1 / sqrt(variance + eps), over the features of the stream.
    void moments(int64_t e, const Tile& p, int v, vec& mean, vec& scale) const {
        const int64_t D = plan.expert[e].width;
        vec sum{}, squares{};
        for (int64_t i = 0; i < D; i++) sum += load(row(buffers[e].x, D, p, i, v));
        mean = sum / float(D);
        for (int64_t i = 0; i < D; i++) {
            const vec x = load(row(buffers[e].x, D, p, i, v)) - mean;
            squares += x * x;
        }
        scale = inverse_root(squares / float(D) + plan.eps);
    }

    void modulated_norm(int64_t e, int64_t layer, const Tile& p, int v, int64_t slot) const {
        const int64_t D = plan.expert[e].width;
        vec mean, scale;
        moments(e, p, v, mean, scale);
        for (int64_t i = 0; i < D; i++) {
            const vec x = (load(row(buffers[e].x, D, p, i, v)) - mean) * scale;
            const vec gain = modulation(e, layer, p, slot + 1, i, v);
            store(row(buffers[e].y, D, p, i, v), x * gain + modulation(e, layer, p, slot, i, v));
        }
    }

    void affine_norm(int64_t e, int64_t layer, const Tile& p, int v) const {
        const int64_t D = plan.expert[e].width;
        const Layer& w = plan.expert[e].layers[layer];
        vec mean, scale;
        moments(e, p, v, mean, scale);
        for (int64_t i = 0; i < D; i++) {
            const vec x = (load(row(buffers[e].x, D, p, i, v)) - mean) * scale;
            store(row(buffers[e].y, D, p, i, v), x * w.norm[i] + w.norm_bias[i]);
        }
    }

    vec inverse_rms(const float* x, const Tile& p, int v) const {
        vec squares{};
        for (int64_t i = 0; i < inner; i++) {
            const vec a = load(x + (i * p.vectors + v) * LANES);
            squares += a * a;
        }
        return inverse_root(squares / float(inner) + plan.eps);
    }

    // Norms and rotates queries and keys, and writes keys and values into the cache.
    void write_cache(int64_t e, int64_t layer, const Tile& p, int v) const {
        const Layer& w = plan.expert[e].layers[layer];
        const Buffers& buffer = buffers[e];
        auto rotate = [&](float* x, const float* norm) {
            const vec scale = inverse_rms(at(x, inner, p), p, v);
            for (int64_t i = 0; i < inner; i += 2) {
                float *a = row(x, inner, p, i, v), *b = row(x, inner, p, i + 1, v);
                const int64_t j = i % plan.head;
                const vec c = load(row(buffer.rotation, plan.head, p, j, v));
                const vec s = load(row(buffer.rotation, plan.head, p, j + 1, v));
                const vec real = load(a) * scale * norm[i];
                const vec imaginary = load(b) * scale * norm[i + 1];
                store(a, real * c - imaginary * s);
                store(b, real * s + imaginary * c);
            }
        };
        rotate(buffer.q, w.q_norm);
        rotate(buffer.k, w.k_norm);
        const Strides& step = plan.cache;
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            const int64_t place = (p.place + token) * step.place;
            for (int64_t h = 0; h < plan.heads; h++) {
                const int64_t to = layer * step.layer + b * step.row + place + h * step.head;
                for (int64_t i = 0; i < plan.head; i++) {
                    plan.keys[to + i] = row(buffer.k, inner, p, h * plan.head + i, v)[l];
                    plan.values[to + i] = row(buffer.v, inner, p, h * plan.head + i, v)[l];
                }
            }
        });
    }
};

extern "C" {

// Floats that `workspace` must hold for the tokens of `piece` in `batch` observations.
int64_t gwp_workspace_size(const Plan* plan) {
    const int64_t inner = plan->heads * plan->head;
    int64_t floats = 0, keys = plan->text_rows;
    for (int64_t i = 0; i < plan->pieces; i++) {
        const Piece& piece = plan->piece[i];
        const Expert& e = plan->expert[piece.expert];
        const int64_t lanes = vectors_of(plan->batch * piece.count) * LANES;
        floats += lanes * (2 * e.width + 3 * inner + e.ffn + plan->head);
        keys = std::max(keys, piece.end);
    }
    return floats + plan->threads * keys * TILE_VECTORS * LANES;
}

// One pass: writes keys and values into the cache and, where `full`, the streams.
void gwp_run(const Plan* plan, const Call* call) {
    const Pass pass(*plan, *call);
#pragma omp parallel num_threads(plan->threads)
    pass.run(omp_get_thread_num(), omp_get_num_threads());
}
}

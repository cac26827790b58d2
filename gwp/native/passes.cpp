// The layers of a pass in fp32 on the CPU, in one call: see layers.py, which mirrors the structs below.
//
// Tokens lie along the lanes of a vector and features one after another, so that norms, softmax, rotations and modulation are plain
// arithmetic between vectors, and a product reads its weights as they are stored: one number of a weight times a vector of tokens.
// Every number is summed in one order whatever stands beside it, so a row of a batch does not depend on its neighbours.
//
// A panel is up to PANEL vectors of one group's tokens, which follow each other from observation to observation without a gap. A buffer of
// n features holds, panel after panel, n rows of its vectors. Threads share the work between barriers.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "meeting.h"
#include "vectors.h"

// ---------------------------------------------------------------------------------------------------- mirrored in layers.py
struct Layer {  // weights [out, in] of one expert in one layer; qk_norm holds the scale of attention
    const float *q, *q_bias, *k, *k_bias, *v, *v_bias, *q_norm, *k_norm, *out, *out_bias, *norm, *norm_bias;
    const float *text_q, *text_q_bias, *text_out, *text_out_bias, *up, *up_bias, *down, *down_bias;
};
struct Expert {
    int64_t width, ffn, tokens;             // tokens of its stream, per observation
    const Layer* layers;
    const float* rotation;                  // [tokens, head / 2, 2]: cosine, sine
    const float *text_keys, *text_values;   // [layers, B, H, rows, head]
};
struct Piece { int64_t expert, start, count, place, end; };  // of its stream; where in the cache, and up to where it sees
struct Strides { int64_t layer, row, head, place; };
struct Plan {
    int64_t layers, batch, heads, head, experts, pieces, text_rows, threads;
    float eps;
    const Expert* expert;
    const Piece* piece;
    float *keys, *values;
    Strides cache, text;
    float* work;
};
struct Noise { int64_t level; const int64_t* index; int64_t row, token; };  // level of all tokens, or -1 and an index with strides
struct Call {
    float* const* streams;       // per expert [B, tokens, width], in and out
    const float* const* levels;  // per expert [layers, n, 6, width]
    int64_t n, full, bare;       // full 0: of the last layer only keys and values are wanted; bare: only products and attention, to measure
    const Noise* noise;          // per piece
};
// ----------------------------------------------------------------------------------------------------

// Tokens [first, first + lanes) of a piece, counted through all observations, `count` in each. `before`: vectors of the panels before it.
// level: of all lanes, or -1; then of each observation where `steady`, else of each token.
struct Panel {
    int64_t expert, start, place, end, count, first, lanes, vectors, before, level;
    bool steady;
    const int64_t* index;
    int64_t across, along;
    int64_t row_of(int64_t lane) const { return (first + lane) / count; }
    int64_t token_of(int64_t lane) const { return (first + lane) % count; }
    int64_t level_of(int64_t lane) const { return index[row_of(lane) * across + token_of(lane) * along]; }
};
struct Seat { int64_t panel, row, lane, lanes; };  // the tokens of one observation in a panel

class Pass {
public:
    Pass(const Plan& plan, const Call& call) : plan(plan), call(call), inner(plan.heads * plan.head), panels(plan.experts), seats(plan.experts), room(plan.experts) {
        std::vector<int64_t> vectors(plan.experts, 0);
        for (int64_t i = 0; i < plan.pieces; i++) add(plan.piece[i], call.noise[i], vectors);
        float* at = plan.work;
        auto take = [&](int64_t features, int64_t e) { float* here = at; at += features * vectors[e] * LANES; return here; };
        for (int64_t e = 0; e < plan.experts; e++) {
            const int64_t D = plan.expert[e].width;
            room[e] = {take(D, e), take(D, e), take(inner, e), take(inner, e), take(inner, e), take(plan.expert[e].ffn, e), take(plan.head, e)};
        }
        scores = at;
        most_keys = plan.text_rows;
        for (int64_t i = 0; i < plan.pieces; i++) most_keys = std::max(most_keys, plan.piece[i].end);
    }

    // What thread `t` of `T` does.
    void run(int64_t t, int64_t T) const {
        float* mine = scores + t * most_keys * PANEL * LANES;
        auto wait = [this, T] { meeting.wait(T); };
        auto share = [t, T](int64_t n, auto work) { for (int64_t u = n * t / T; u < n * (t + 1) / T; u++) work(u); };
        // Vectors of the panels of an expert, one by one.
        auto columns = [&](int64_t e, auto work) {
            if (call.bare) return;
            share(panels[e].size() * PANEL, [&](int64_t u) {
                const Panel& p = panels[e][u / PANEL];
                if (u % PANEL < p.vectors) work(p, u % PANEL);
            });
        };
        // A product: weight [M, K] times the rows of `in`. Panels outermost: theirs stay in a core's cache while the weight passes.
        auto product = [&](int64_t e, const float* weight, int64_t M, int64_t K, const float* in, auto put) {
            const int64_t tiles = tiles_of(M);
            share(panels[e].size() * tiles, [&](int64_t u) {
                const Panel& p = panels[e][u / tiles];
                const Matrix<false> A{weight, K};
                const float* B = at(in, K, p);
                auto into = [&](int64_t i, int v, vec sum) { put(p, i, v, sum); };
                if (p.vectors == 3) rows_of_tile<3>(A, B, p.vectors * LANES, K, M, u % tiles, into);
                else if (p.vectors == 2) rows_of_tile<2>(A, B, p.vectors * LANES, K, M, u % tiles, into);
                else rows_of_tile<1>(A, B, p.vectors * LANES, K, M, u % tiles, into);
            });
        };
        auto attention = [&](int64_t e, const float* keys, const float* values, Strides step, int64_t count, float* q, float* out) {
            share(seats[e].size() * plan.heads, [&](int64_t u) {
                const Seat& seat = seats[e][u / plan.heads];
                const Panel& p = panels[e][seat.panel];
                const int64_t h = u % plan.heads;
                const int64_t offset = seat.row * step.row + h * step.head, wide = p.vectors * LANES;
                const int64_t first = h * plan.head * wide + seat.lane, V = vectors_of(seat.lanes);
                auto run = V == 3 ? attend<3> : V == 2 ? attend<2> : attend<1>;
                run(at(q, inner, p) + first, keys + offset, values + offset, step.place, count ? count : p.end, plan.head, wide, seat.lanes, mine,
                    at(out, inner, p) + first);
            });
        };
        for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { enter(e, p, v); });
        for (int64_t i = 0; i < plan.layers; i++) {
            const bool last = !call.full && i == plan.layers - 1;
            const int64_t cache = i * plan.cache.layer, text = i * plan.text.layer;
            wait();
            for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { modulated(e, i, p, v, 0); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                auto biased = [&](float* out, const float* bias) {
                    return [this, out, bias](const Panel& p, int64_t i, int v, vec sum) { store(row(out, inner, p, i, v), sum + bias[i]); };
                };
                product(e, w.q, inner, D, room[e].y, biased(room[e].q, w.q_bias));
                product(e, w.k, inner, D, room[e].y, biased(room[e].k, w.k_bias));
                product(e, w.v, inner, D, room[e].y, biased(room[e].v, w.v_bias));
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { keep(e, i, p, v); });
            if (last) break;
            wait();
            for (int64_t e = 0; e < plan.experts; e++) attention(e, plan.keys + cache, plan.values + cache, plan.cache, 0, room[e].q, room[e].k);
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.out, D, inner, room[e].k, [&](const Panel& p, int64_t j, int v, vec sum) {
                    float* x = row(room[e].x, D, p, j, v);
                    store(x, load(x) + modulation(e, i, p, 2, j, v) * (sum + w.out_bias[j]));
                });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { normed(e, i, p, v); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                product(e, w.text_q, inner, plan.expert[e].width, room[e].y, [&](const Panel& p, int64_t j, int v, vec sum) {
                    store(row(room[e].q, inner, p, j, v), sum + w.text_q_bias[j]);
                });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) {
                const vec scale = inverse_rms(at(room[e].q, inner, p), p, v);
                for (int64_t j = 0; j < inner; j++) store(row(room[e].q, inner, p, j, v), load(row(room[e].q, inner, p, j, v)) * scale);
            });
            wait();
            for (int64_t e = 0; e < plan.experts; e++)
                attention(e, plan.expert[e].text_keys + text, plan.expert[e].text_values + text, plan.text, plan.text_rows, room[e].q, room[e].k);
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.text_out, D, inner, room[e].k, [&](const Panel& p, int64_t j, int v, vec sum) {
                    float* x = row(room[e].x, D, p, j, v);
                    store(x, load(x) + sum + w.text_out_bias[j]);
                });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { modulated(e, i, p, v, 3); });
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t F = plan.expert[e].ffn;
                product(e, w.up, F, plan.expert[e].width, room[e].y, [&](const Panel& p, int64_t j, int v, vec sum) {
                    store(row(room[e].up, F, p, j, v), gelu(sum + w.up_bias[j]));
                });
            }
            wait();
            for (int64_t e = 0; e < plan.experts; e++) {
                const Layer& w = plan.expert[e].layers[i];
                const int64_t D = plan.expert[e].width;
                product(e, w.down, D, plan.expert[e].ffn, room[e].up, [&](const Panel& p, int64_t j, int v, vec sum) {
                    float* x = row(room[e].x, D, p, j, v);
                    store(x, load(x) + modulation(e, i, p, 5, j, v) * (sum + w.down_bias[j]));
                });
            }
        }
        if (!call.full) return;
        wait();
        for (int64_t e = 0; e < plan.experts; e++) columns(e, [&](const Panel& p, int v) { leave(e, p, v); });
    }

private:
    struct Room { float *x, *y, *q, *k, *v, *up, *turn; };

    const Plan& plan;
    const Call& call;
    const int64_t inner;
    std::vector<std::vector<Panel>> panels;
    std::vector<std::vector<Seat>> seats;
    std::vector<Room> room;
    float* scores;
    int64_t most_keys;
    mutable Meeting meeting;

    void add(const Piece& piece, const Noise& noise, std::vector<int64_t>& vectors) {
        const int64_t e = piece.expert, tokens = plan.batch * piece.count, all = vectors_of(tokens), parts = (all + PANEL - 1) / PANEL;
        for (int64_t i = 0; i < parts; i++) {
            const int64_t from = all * i / parts, V = all * (i + 1) / parts - from, first = from * LANES;
            Panel p{e, piece.start, piece.place, piece.end, piece.count, first, std::min(V * LANES, tokens - first), V, vectors[e],
                    noise.level, noise.token == 0, noise.index, noise.row, noise.token};
            if (p.level < 0) {
                bool same = true;
                for (int64_t l = 1; l < p.lanes; l++) same = same && p.level_of(l) == p.level_of(0);
                if (same) p.level = p.level_of(0);
            }
            for (int64_t l = 0, n; l < p.lanes; l += n) {
                n = std::min(p.count - p.token_of(l), p.lanes - l);
                seats[e].push_back({int64_t(panels[e].size()), p.row_of(l), l, n});
            }
            panels[e].push_back(p);
            vectors[e] += V;
        }
    }

    static const float* at(const float* buffer, int64_t features, const Panel& p) { return buffer + p.before * features * LANES; }
    static float* at(float* buffer, int64_t features, const Panel& p) { return buffer + p.before * features * LANES; }
    static float* row(float* buffer, int64_t features, const Panel& p, int64_t i, int v) {
        return at(buffer, features, p) + (i * p.vectors + v) * LANES;
    }
    // Calls `work(lane of the vector, observation, token of the piece)` for every token of one vector.
    template <class Work>
    static void tokens(const Panel& p, int v, Work work) {
        for (int64_t l = 0; l < std::min<int64_t>(LANES, p.lanes - v * LANES); l++) work(l, p.row_of(v * LANES + l), p.token_of(v * LANES + l));
    }

    // Shift, scale and gate of one feature: slots as in `Levels`.
    vec modulation(int64_t e, int64_t layer, const Panel& p, int64_t slot, int64_t i, int v) const {
        const int64_t D = plan.expert[e].width, first = v * LANES, stop = std::min(first + LANES, p.lanes);
        const float* table = call.levels[e] + (layer * call.n * 6 + slot) * D + i;
        if (p.level >= 0) return splat(table[p.level * 6 * D]);
        vec x = splat(table[p.level_of(std::min(first, p.lanes - 1)) * 6 * D]);
        if (p.steady) {
            // Later observations of the vector, each from its first lane on.
            for (int64_t from = first + p.count - p.token_of(first); from < stop; from += p.count)
                x = COUNT >= splat(float(from - first)) ? splat(table[p.level_of(from) * 6 * D]) : x;
            return x;
        }
        for (int64_t l = first + 1; l < stop; l++) x[l - first] = table[p.level_of(l) * 6 * D];
        return x;
    }

    // Tokens of a stream [., tokens, n] to rows of vectors; lanes without a token are 0.
    static void turn_in(const Panel& p, int64_t n, float* to, const std::vector<const float*>& from) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t l = 0; l < LANES; l++) to[i * p.vectors * LANES + l] = from[l] ? from[l][i] : 0;
    }

    void enter(int64_t e, const Panel& p, int v) const {
        const int64_t D = plan.expert[e].width;
        std::vector<const float*> x(LANES, nullptr), turn(LANES, nullptr);
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            x[l] = call.streams[e] + (b * plan.expert[e].tokens + p.start + token) * D;
            turn[l] = plan.expert[e].rotation + (p.start + token) * plan.head;
        });
        turn_in(p, D, row(room[e].x, D, p, 0, v), x);
        turn_in(p, plan.head, row(room[e].turn, plan.head, p, 0, v), turn);
    }

    void leave(int64_t e, const Panel& p, int v) const {
        const int64_t D = plan.expert[e].width;
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            float* x = call.streams[e] + (b * plan.expert[e].tokens + p.start + token) * D;
            for (int64_t i = 0; i < D; i++) x[i] = row(room[e].x, D, p, i, v)[l];
        });
    }

    // Mean, and 1 / sqrt(variance + eps), over the features of the stream.
    void moments(int64_t e, const Panel& p, int v, vec& mean, vec& scale) const {
        const int64_t D = plan.expert[e].width;
        vec sum{}, squares{};
        for (int64_t i = 0; i < D; i++) sum += load(row(room[e].x, D, p, i, v));
        mean = sum / float(D);
        for (int64_t i = 0; i < D; i++) {
            const vec x = load(row(room[e].x, D, p, i, v)) - mean;
            squares += x * x;
        }
        scale = inverse_root(squares / float(D) + plan.eps);
    }

    void modulated(int64_t e, int64_t layer, const Panel& p, int v, int64_t slot) const {
        const int64_t D = plan.expert[e].width;
        vec mean, scale;
        moments(e, p, v, mean, scale);
        for (int64_t i = 0; i < D; i++) {
            const vec x = (load(row(room[e].x, D, p, i, v)) - mean) * scale;
            store(row(room[e].y, D, p, i, v), x * modulation(e, layer, p, slot + 1, i, v) + modulation(e, layer, p, slot, i, v));
        }
    }

    void normed(int64_t e, int64_t layer, const Panel& p, int v) const {
        const int64_t D = plan.expert[e].width;
        const Layer& w = plan.expert[e].layers[layer];
        vec mean, scale;
        moments(e, p, v, mean, scale);
        for (int64_t i = 0; i < D; i++)
            store(row(room[e].y, D, p, i, v), (load(row(room[e].x, D, p, i, v)) - mean) * scale * w.norm[i] + w.norm_bias[i]);
    }

    vec inverse_rms(const float* x, const Panel& p, int v) const {
        vec squares{};
        for (int64_t i = 0; i < inner; i++) {
            const vec a = load(x + (i * p.vectors + v) * LANES);
            squares += a * a;
        }
        return inverse_root(squares / float(inner) + plan.eps);
    }

    // Norms and rotates queries and keys, and writes keys and values into the cache.
    void keep(int64_t e, int64_t layer, const Panel& p, int v) const {
        const Layer& w = plan.expert[e].layers[layer];
        auto turned = [&](float* x, const float* norm) {
            const vec scale = inverse_rms(at(x, inner, p), p, v);
            for (int64_t i = 0; i < inner; i += 2) {
                float *a = row(x, inner, p, i, v), *b = row(x, inner, p, i + 1, v);
                const int64_t j = i % plan.head;
                const vec c = load(row(room[e].turn, plan.head, p, j, v)), s = load(row(room[e].turn, plan.head, p, j + 1, v));
                const vec real = load(a) * scale * norm[i], imaginary = load(b) * scale * norm[i + 1];
                store(a, real * c - imaginary * s);
                store(b, real * s + imaginary * c);
            }
        };
        turned(room[e].q, w.q_norm);
        turned(room[e].k, w.k_norm);
        const Strides& step = plan.cache;
        tokens(p, v, [&](int64_t l, int64_t b, int64_t token) {
            const int64_t to = layer * step.layer + b * step.row + (p.place + token) * step.place;
            for (int64_t h = 0; h < plan.heads; h++)
                for (int64_t i = 0; i < plan.head; i++) {
                    plan.keys[to + h * step.head + i] = row(room[e].k, inner, p, h * plan.head + i, v)[l];
                    plan.values[to + h * step.head + i] = row(room[e].v, inner, p, h * plan.head + i, v)[l];
                }
        });
    }
};

extern "C" {

// Numbers that `work` must hold for tokens [pieces] of these experts.
int64_t gwp_room(const Plan* plan) {
    int64_t numbers = 0, keys = plan->text_rows;
    for (int64_t i = 0; i < plan->pieces; i++) {
        const Expert& e = plan->expert[plan->piece[i].expert];
        numbers += vectors_of(plan->batch * plan->piece[i].count) * LANES * (2 * e.width + 3 * plan->heads * plan->head + e.ffn + plan->head);
        keys = std::max(keys, plan->piece[i].end);
    }
    return numbers + plan->threads * keys * PANEL * LANES;
}

void gwp_run(const Plan* plan, const Call* call) {
    const Pass pass(*plan, *call);
#pragma omp parallel num_threads(plan->threads)
    pass.run(omp_get_thread_num(), omp_get_num_threads());
}
}

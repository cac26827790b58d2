// How the tokens of a pass are cut into what a product works on at a time.
//
// A tile is up to TILE_VECTORS vectors of one piece's tokens, which follow each other from
// observation to observation without a gap.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan.h"
#include "vectors.h"

// Tokens [first, first + lanes) of a piece, counted through all observations, `count` in each.
// offset: vectors of the tiles before it. level: of all lanes, or -1; then one of each observation
// where `level_per_row`, else one of each token.
struct Tile {
    int64_t start, place, end, count, first, lanes, vectors, offset, level;
    bool level_per_row;
    const int64_t* index;
    int64_t row_stride, token_stride;
    int64_t row_of(int64_t lane) const { return (first + lane) / count; }
    int64_t token_of(int64_t lane) const { return (first + lane) % count; }
    int64_t level_of(int64_t lane) const {
        return index[row_of(lane) * row_stride + token_of(lane) * token_stride];
    }
};

// The tokens of one observation in a tile: attention's queries see one row of the cache.
struct QueryTile {
    int64_t tile, row, lane, lanes;
};

// Appends the tiles of a piece, as few as hold its tokens and as even as can be, behind `vectors`
// vectors of its expert. Returns how many vectors there are then.
inline int64_t add_tiles(const Piece& piece, const Noise& noise, int64_t batch, int64_t vectors,
                         std::vector<Tile>& tiles, std::vector<QueryTile>& query_tiles) {
    const int64_t tokens = batch * piece.count, all = vectors_of(tokens);
    const int64_t parts = (all + TILE_VECTORS - 1) / TILE_VECTORS;
    for (int64_t i = 0; i < parts; i++) {
        const int64_t from = all * i / parts, V = all * (i + 1) / parts - from;
        const int64_t first = from * LANES, lanes = std::min(V * LANES, tokens - first);
        Tile p{piece.start, piece.place, piece.end, piece.count, first, lanes, V, vectors + from,
               noise.level, noise.token == 0, noise.index, noise.row, noise.token};
        if (p.level < 0) {
            bool same = true;
            for (int64_t l = 1; l < p.lanes; l++) same = same && p.level_of(l) == p.level_of(0);
            if (same) p.level = p.level_of(0);
        }
        for (int64_t l = 0, n; l < p.lanes; l += n) {
            n = std::min(p.count - p.token_of(l), p.lanes - l);
            query_tiles.push_back({int64_t(tiles.size()), p.row_of(l), l, n});
        }
        tiles.push_back(p);
    }
    return vectors + all;
}

// The wanted part of a scaled picture, RGB, from the planes of a decoded frame or from RGB: bilinear, anti-aliased, in one pass over
// memory that stays in cache. Numbers are those of swscale's conversion and of torch's scaling of bytes: a colour is rounded to 8 bits
// after its conversion, after it was scaled in width, and after it was scaled in height.
//
// Rows lie along the lanes of vectors until they are scaled in width, so that each weight belongs to a whole vector.
#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Rows of a strip; and those of them that one register holds as numbers of 32 bits.
constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int WIDE = 16;
#elif defined(__AVX__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
constexpr int PARTS = LANES / WIDE;

typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef int16_t shorts __attribute__((vector_size(LANES * 2)));
typedef uint8_t some_bytes __attribute__((vector_size(WIDE)));
typedef int16_t some_shorts __attribute__((vector_size(WIDE * 2)));
typedef int32_t ints __attribute__((vector_size(WIDE * 4)));
typedef float floats __attribute__((vector_size(WIDE * 4)));

// Sums along one side of a picture: for each of `count` places the first value that counts, and `most` weights, whole numbers with `bits`
// behind the point. Floats hold sums exactly where a picture is at most halved, and to a hundredth of a level where it becomes far smaller.
struct Taps {
    int64_t count, most, bits;
    const int32_t* first;
    const float* weights;
};

// What is looked at. Three planes, chroma at half the width and height; or, without chroma, rows of RGB in `luma`. `gwp.yuv.Colours` says
// what the last line means.
struct Picture {
    const uint8_t *luma, *u, *v;
    int64_t luma_step, chroma_step, width, height;
    int16_t black, luma_gain, red_v, green_u, green_v, blue_u;
};

inline bytes load(const uint8_t* from) {
    bytes x;
    std::memcpy(&x, from, LANES);
    return x;
}

template <typename Part, typename Whole>
inline Part part_of(const Whole& x, int i) {
    Part part;
    std::memcpy(&part, (const char*)&x + i * sizeof(part), sizeof(part));
    return part;
}

inline void put(floats* to, shorts x) {
    for (int i = 0; i < PARTS; i++)
        to[i] = __builtin_convertvector(__builtin_convertvector(part_of<some_shorts>(x, i), ints), floats);
}

inline void put(floats* to, bytes x) { put(to, __builtin_convertvector(x, shorts)); }

// Sums without the bits behind their points. They are at most 255, for weights are not negative and sum up to 1.
inline void put(uint8_t* to, floats sum, int bits) {
    const ints whole = __builtin_convertvector(sum, ints) >> bits;
    const some_bytes rounded = __builtin_convertvector(__builtin_convertvector(whole, some_shorts), some_bytes);
    std::memcpy(to, &rounded, WIDE);
}

// Of the products, 32 bits each.
inline shorts upper_half(shorts a, int16_t b) {
#if defined(__AVX2__)
    return (shorts)_mm256_mulhi_epi16((__m256i)a, _mm256_set1_epi16(b));
#else
    shorts product;
    for (int i = 0; i < LANES; i++) product[i] = (int16_t)((a[i] * b) >> 16);
    return product;
#endif
}

inline shorts level(shorts x) {
    x = x < 0 ? shorts{} : x;
    return x > 255 ? 255 - shorts{} : x;
}

// Vectors i of `a` hold a row each; after it, a column each.
inline void transpose(bytes (&a)[LANES]) {
    constexpr bytes low{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    for (int round = 0; round < 4; round++) {
        bytes b[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 2], low);
            b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 2], high);
        }
        std::copy(b, b + LANES, a);
    }
}

// LANES rows of bytes, `step` apart, of which only `rows` are there: column x becomes the vector `to` + x.
void by_column(const uint8_t* from, int64_t step, int64_t rows, int64_t columns, bytes* to) {
    for (int64_t next = 0; next < columns; next += LANES) {
        // Nothing beyond the last column is read: the last block begins earlier.
        const int64_t x = std::max<int64_t>(0, std::min(next, columns - LANES));
        bytes a[LANES];
        for (int i = 0; i < LANES; i++) {
            const uint8_t* row = from + std::min<int64_t>(i, rows - 1) * step + x;
            if (columns >= LANES) a[i] = load(row);
            else std::memcpy(&a[i], row, columns);
        }
        transpose(a);
        std::copy(a, a + LANES, to + x);
    }
}

// What one call needs beside its input: a strip of LANES rows, its colours, and scaled rows.
struct Workspace {
    bytes *luma, *u, *v, *scaled;
    floats* colours;  // [width, 3]
    float* rows;      // [most + LANES, row]
    int64_t row, size;

    Workspace(const Picture& p, const Taps& across, const Taps& down, uint8_t* memory) {
        uint8_t* at = memory + (-(intptr_t)memory & 63);
        auto take = [&](int64_t bytes) { uint8_t* here = at; at += (bytes + 63) / 64 * 64; return here; };
        const int64_t columns = p.width + LANES;
        row = (3 * across.count + LANES - 1) / LANES * LANES;
        luma = (bytes*)take(3 * columns * sizeof(bytes));
        u = (bytes*)take(columns * sizeof(bytes));
        v = (bytes*)take(columns * sizeof(bytes));
        scaled = (bytes*)take((row + LANES) * sizeof(bytes));
        colours = (floats*)take(3 * columns * PARTS * sizeof(floats));
        rows = (float*)take((down.most + LANES) * row * sizeof(float));
        size = at - memory + 64;
    }
};

// Colours of the rows from `top` on, a vector for each column and colour.
void colours(const Picture& p, int64_t top, const Workspace& work) {
    const int64_t left = p.height - top;
    if (!p.u) {
        by_column(p.luma + top * p.luma_step, p.luma_step, left, 3 * p.width, work.luma);
        for (int64_t i = 0; i < 3 * p.width; i++) put(work.colours + i * PARTS, work.luma[i]);
        return;
    }
    const int64_t halves = (p.width + 1) / 2;
    by_column(p.luma + top * p.luma_step, p.luma_step, left, p.width, work.luma);
    by_column(p.u + top / 2 * p.chroma_step, p.chroma_step, (left + 1) / 2, halves, work.u);
    by_column(p.v + top / 2 * p.chroma_step, p.chroma_step, (left + 1) / 2, halves, work.v);
    constexpr bytes twice{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
    for (int64_t c = 0; c < halves; c++) {
        const shorts u = (__builtin_convertvector(__builtin_shuffle(work.u[c], twice), shorts) - 128) * 8;
        const shorts v = (__builtin_convertvector(__builtin_shuffle(work.v[c], twice), shorts) - 128) * 8;
        const shorts red = upper_half(v, p.red_v), blue = upper_half(u, p.blue_u);
        const shorts green = upper_half(u, p.green_u) + upper_half(v, p.green_v);
        for (int64_t x = 2 * c; x < 2 * c + 2; x++) {
            const shorts y = upper_half((__builtin_convertvector(work.luma[x], shorts) - p.black) * 8, p.luma_gain);
            floats* to = work.colours + 3 * x * PARTS;
            put(to, level(y + red));
            put(to + PARTS, level(y + green));
            put(to + 2 * PARTS, level(y + blue));
        }
    }
}

template <int MOST>
void across(const floats* colours, const Taps& taps, bytes* out) {
    constexpr int SUMS = 3 * PARTS;
    const int64_t most = MOST ? MOST : taps.most;
    const int bits = (int)taps.bits;
    for (int64_t x = 0; x < taps.count; x++) {
        const floats* from = colours + SUMS * (int64_t)taps.first[x];
        const float* weights = taps.weights + x * taps.most;
        floats sum[SUMS];
        for (int i = 0; i < SUMS; i++) sum[i] = (float)(1 << (bits - 1)) - floats{};
        for (int64_t k = 0; k < most; k++)
            for (int i = 0; i < SUMS; i++) sum[i] += from[SUMS * k + i] * weights[k];
        for (int i = 0; i < SUMS; i++) put((uint8_t*)(out + 3 * x) + i * WIDE, sum[i], bits);
    }
}

template <int MOST>
void down(const float* rows, int64_t row, const float* weights, const Taps& taps, int64_t width, uint8_t* out) {
    const int64_t most = MOST ? MOST : taps.most;
    const int bits = (int)taps.bits;
    for (int64_t x = 0; x < width; x += WIDE) {
        floats sum = (float)(1 << (bits - 1)) - floats{};
        for (int64_t k = 0; k < most; k++) sum += *(const floats*)(rows + k * row + x) * weights[k];
        if (x + WIDE <= width) {
            put(out + x, sum, bits);
        } else {
            uint8_t last[WIDE];
            put(last, sum, bits);
            std::memcpy(out + x, last, width - x);
        }
    }
}

}  // namespace

// Bytes of memory that `gwp_picture` needs.
extern "C" int64_t gwp_picture_workspace_size(const Picture* p, const Taps* across, const Taps* down) {
    return Workspace(*p, *across, *down, nullptr).size;
}

// RGB [down.count, across.count, 3] to `out`, its rows `step` bytes apart. The top of the picture is at an even row of its planes.
extern "C" void gwp_picture(const Picture* p, const Taps* taps, const Taps* lines, uint8_t* out, int64_t step, uint8_t* memory) {
    const Workspace work(*p, *taps, *lines, memory);
    const int64_t width = 3 * taps->count;
    const auto wide = taps->most == 2 ? across<2> : taps->most == 3 ? across<3> : taps->most == 4 ? across<4> : across<0>;
    const auto high = lines->most == 2 ? down<2> : lines->most == 3 ? down<3> : lines->most == 4 ? down<4> : down<0>;
    int64_t begin = 0, done = 0;  // first row at hand, lines written
    for (int64_t top = 0; top < p->height && done < lines->count; top += LANES) {
        const int64_t end = std::min(top + LANES, p->height);
        colours(*p, top, work);
        wide(work.colours, *taps, work.scaled);
        for (int64_t x = 0; x < width; x += LANES) {
            bytes a[LANES];
            std::copy(work.scaled + x, work.scaled + x + LANES, a);
            transpose(a);
            for (int i = 0; i < LANES; i++) put((floats*)(work.rows + (top - begin + i) * work.row + x), a[i]);
        }
        for (; done < lines->count && lines->first[done] + lines->most <= end; done++) {
            const float* from = work.rows + (lines->first[done] - begin) * work.row;
            high(from, work.row, lines->weights + done * lines->most, *lines, width, out + done * step);
        }
        // Rows that later lines need go to the front.
        const int64_t keep = done < lines->count ? std::min<int64_t>(lines->first[done], end) : end;
        std::memmove(work.rows, work.rows + (keep - begin) * work.row, (end - keep) * work.row * sizeof(float));
        begin = keep;
    }
}

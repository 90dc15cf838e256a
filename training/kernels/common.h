// Small matrix products for one core: bfloat16 operands and float32 sums (AVX-512 BF16), or float32 throughout (AVX2).
//
// A "word" holds PAIR values that are neighbours along the summed dimension: a pair of bfloat16 values, which is what
// vdpbf16ps multiplies, or one float. Every product here is C[i][j] (+)= sum_p <A(i, p), B(p, j)> over words p, where
// A(i, p) = a[i * row + p * step] and B(p, j) = b[p * ldb + j]. A row-major matrix is an A as it stands
// (row = columns / PAIR, step = 1); PAIR rows woven into one row of words are a B, or the transpose of an A (row = 1,
// step = columns). Names with 16 or "pairs" in them hold floats where nothing is bfloat16.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vectors.h"

// A buffer that a thread keeps: allocation was a third of the prototype's time.
template <class T>
struct Scratch {
    T* data = nullptr;
    size_t size = 0;
    T* get(size_t n) {
        if (n > size) {
            free(data);
            size = n;
            data = (T*)aligned_alloc(64, (n * sizeof(T) + 4095) / 4096 * 4096);
        }
        return data;
    }
};
#define SCRATCH(type, name, count)            \
    static thread_local Scratch<type> name##_; \
    type* name = name##_.get(count)

#ifdef HALF
typedef uint16_t bf16;
typedef uint32_t word;
constexpr int PAIR = 2;

template <int MR, int NV>
static inline __attribute__((always_inline)) void tile(int words, const word* a, int row, int step, const word* b, int ldb,
                                                       float* c, int ldc, bool add) {
    __m512 sums[MR][NV];
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) sums[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
    for (int p = 0; p < words; p++) {
        __m512bh right[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + (size_t)p * ldb + 16 * j);
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++) {
            __m512bh left = (__m512bh)_mm512_set1_epi32(a[(size_t)i * row + (size_t)p * step]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], right[j], left);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sums[i][j]);
}

template <int NV>
static void panel(int rows, int words, const word* a, int row, int step, const word* b, int ldb, float* c, int ldc, bool add) {
    constexpr int MR = NV == 4 ? 6 : NV == 3 ? 8 : 12;
    int i = 0;
    for (; i + MR <= rows; i += MR) tile<MR, NV>(words, a + (size_t)i * row, row, step, b, ldb, c + (size_t)i * ldc, ldc, add);
    for (; i + 4 <= rows; i += 4) tile<4, NV>(words, a + (size_t)i * row, row, step, b, ldb, c + (size_t)i * ldc, ldc, add);
    for (; i < rows; i++) tile<1, NV>(words, a + (size_t)i * row, row, step, b, ldb, c + (size_t)i * ldc, ldc, add);
}

// columns must be a multiple of 16. The sum is cut into blocks of 128 words, so that a panel of B stays in the L1 cache.
static inline void multiply(int rows, int columns, int words, const word* a, int row, int step, const word* b, int ldb, float* c,
                            int ldc, bool add) {
    constexpr int BLOCK = 128;
    for (int start = 0; start < words; start += BLOCK) {
        int size = words - start < BLOCK ? words - start : BLOCK;
        const word* left = a + (size_t)start * step;
        const word* right = b + (size_t)start * ldb;
        bool sum = add || start > 0;
        int j = 0;
        for (; j + 64 <= columns; j += 64) panel<4>(rows, size, left, row, step, right + j, ldb, c + j, ldc, sum);
        for (; j + 32 <= columns; j += 32) panel<2>(rows, size, left, row, step, right + j, ldb, c + j, ldc, sum);
        for (; j < columns; j += 16) panel<1>(rows, size, left, row, step, right + j, ldb, c + j, ldc, sum);
    }
}

static inline bf16 to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return (bf16)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
static inline __m512 load_bf16(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}
static inline void store_bf16(bf16* out, __m512 x) { _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh(x)); }
// Two rows -> one row of words. second may be null (a row of zeros, for an odd last row).
static inline void weave(const bf16* first, const bf16* second, word* out, int columns) {
    for (int j = 0; j < columns; j += 16) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(first + j)));
        if (second) {
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(second + j)));
            low = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        }
        _mm512_storeu_si512(out + j, low);
    }
}
// Row-major [rows][2 * words] -> [words][rows] words: the B of x @ W.T for a W stored as torch stores it.
static inline void turn(const bf16* x, int ldx, int rows, int words, word* out, int ldo) {
    const __m512i index = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(ldx / 2));
    int i = 0;
    for (; i + 16 <= rows; i += 16)
        for (int p = 0; p < words; p++)
            _mm512_storeu_si512(out + (size_t)p * ldo + i,
                                _mm512_i32gather_epi32(index, (const int*)(x + (size_t)i * ldx) + p, 4));
    for (; i < rows; i++)
        for (int p = 0; p < words; p++) out[(size_t)p * ldo + i] = ((const word*)(x + (size_t)i * ldx))[p];
}
#else
typedef float bf16;
typedef float word;
constexpr int PAIR = 1;

// MR x 16 sums in registers. b is packed: 16 columns of one word after those of the word before.
template <int MR>
static inline __attribute__((always_inline)) void tile(int words, const word* a, int row, int step, const word* b, float* c, int ldc,
                                                       bool add) {
    __m256 sums[MR][2];
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
        sums[i][0] = add ? _mm256_loadu_ps(c + (size_t)i * ldc) : _mm256_setzero_ps();
        sums[i][1] = add ? _mm256_loadu_ps(c + (size_t)i * ldc + 8) : _mm256_setzero_ps();
    }
    for (int p = 0; p < words; p++) {
        __m256 low = _mm256_load_ps(b + (size_t)p * 16), high = _mm256_load_ps(b + (size_t)p * 16 + 8);
#pragma GCC unroll 6
        for (int i = 0; i < MR; i++) {
            __m256 left = _mm256_broadcast_ss(a + (size_t)i * row + (size_t)p * step);
            sums[i][0] = _mm256_fmadd_ps(left, low, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(left, high, sums[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
        _mm256_storeu_ps(c + (size_t)i * ldc, sums[i][0]);
        _mm256_storeu_ps(c + (size_t)i * ldc + 8, sums[i][1]);
    }
}

static void panel(int rows, int words, const word* a, int row, int step, const word* b, float* c, int ldc, bool add) {
    int i = 0;
    for (; i + 6 <= rows; i += 6) tile<6>(words, a + (size_t)i * row, row, step, b, c + (size_t)i * ldc, ldc, add);
    a += (size_t)i * row, c += (size_t)i * ldc;
    switch (rows - i) {
        case 5: return tile<5>(words, a, row, step, b, c, ldc, add);
        case 4: return tile<4>(words, a, row, step, b, c, ldc, add);
        case 3: return tile<3>(words, a, row, step, b, c, ldc, add);
        case 2: return tile<2>(words, a, row, step, b, c, ldc, add);
        case 1: return tile<1>(words, a, row, step, b, c, ldc, add);
    }
}

// columns must be a multiple of 16. B is packed 128 words by 128 columns at a time, which stay in the L2 cache; one panel of
// 16 columns stays in the L1 cache while 96 rows pass.
static inline void multiply(int rows, int columns, int words, const word* a, int row, int step, const word* b, int ldb, float* c,
                            int ldc, bool add) {
    constexpr int BLOCK = 128, ROWS = 96;
    SCRATCH(word, packed, (size_t)BLOCK * BLOCK);
    for (int start = 0; start < words; start += BLOCK) {
        int size = words - start < BLOCK ? words - start : BLOCK;
        const word* left = a + (size_t)start * step;
        bool sum = add || start > 0;
        for (int j0 = 0; j0 < columns; j0 += BLOCK) {
            int wide = columns - j0 < BLOCK ? columns - j0 : BLOCK;
            for (int p = 0; p < size; p++) {
                const word* from = b + (size_t)(start + p) * ldb + j0;
                for (int j = 0; j < wide; j += 16) vstore(packed + (size_t)j * size + p * 16, vload(from + j));
            }
            for (int i = 0; i < rows; i += ROWS)
                for (int j = 0; j < wide; j += 16)
                    panel(rows - i < ROWS ? rows - i : ROWS, size, left + (size_t)i * row, row, step, packed + (size_t)j * size,
                          c + (size_t)i * ldc + j0 + j, ldc, sum);
        }
    }
}

static inline bf16 to_bf16(float x) { return x; }
static inline vec load_bf16(const bf16* x) { return vload(x); }
static inline void store_bf16(bf16* out, vec x) { vstore(out, x); }
static inline void weave(const bf16* first, const bf16*, word* out, int columns) { memcpy(out, first, columns * sizeof(word)); }
// [rows][words] -> [words][rows], eight by eight.
static inline void turn(const bf16* x, int ldx, int rows, int words, word* out, int ldo) {
    int i = 0;
    for (; i + 8 <= rows; i += 8) {
        int p = 0;
        for (; p + 8 <= words; p += 8) {
            __m256 r[8], s[8];
            for (int k = 0; k < 8; k++) r[k] = _mm256_loadu_ps(x + (size_t)(i + k) * ldx + p);
            for (int k = 0; k < 8; k += 2) {
                s[k] = _mm256_unpacklo_ps(r[k], r[k + 1]);
                s[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
            }
            for (int k = 0; k < 8; k += 4)
                for (int h = 0; h < 2; h++) {
                    r[k + 2 * h] = _mm256_shuffle_ps(s[k + h], s[k + 2 + h], _MM_SHUFFLE(1, 0, 1, 0));
                    r[k + 2 * h + 1] = _mm256_shuffle_ps(s[k + h], s[k + 2 + h], _MM_SHUFFLE(3, 2, 3, 2));
                }
            for (int k = 0; k < 4; k++) {
                _mm256_storeu_ps(out + (size_t)(p + k) * ldo + i, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
                _mm256_storeu_ps(out + (size_t)(p + k + 4) * ldo + i, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
            }
        }
        for (; p < words; p++)
            for (int k = 0; k < 8; k++) out[(size_t)p * ldo + i + k] = x[(size_t)(i + k) * ldx + p];
    }
    for (; i < rows; i++)
        for (int p = 0; p < words; p++) out[(size_t)p * ldo + i] = x[(size_t)i * ldx + p];
}
#endif

static inline int words_of(int n) { return (n + PAIR - 1) / PAIR; }
static inline void convert(const float* x, bf16* out, size_t n) {
    for (size_t i = 0; i < n; i += 16) store_bf16(out + i, vload(x + i));
}
static inline void weave_rows(const bf16* x, int ldx, int rows, int columns, word* out, int ldo) {
    for (int i = 0; i < rows; i += PAIR)
        weave(x + (size_t)i * ldx, i + 1 < rows ? x + (size_t)(i + 1) * ldx : nullptr, out + (size_t)(i / PAIR) * ldo, columns);
}
// The same without a copy where there is nothing to do: the result is in `scratch` or where it was.
static inline const bf16* converted(const float* x, bf16* scratch, size_t n) {
    if constexpr (PAIR == 1) return (const bf16*)x;
    convert(x, scratch, n);
    return scratch;
}
static inline const word* woven(const bf16* x, int rows, int ld, word* scratch, int columns = 0) {
    if constexpr (PAIR == 1) return (const word*)x;
    weave_rows(x, ld, rows, columns ? columns : ld, scratch, ld);
    return scratch;
}

// y = x / rms(x) (before the weight), one row; returns 1 / rms.
static inline float rms_scale(const float* x, int n, float eps) {
    vec sum = vzero();
    for (int j = 0; j < n; j += 16) {
        vec v = vload(x + j);
        sum = vfma(v, v, sum);
    }
    return 1.0f / std::sqrt(vsum(sum) / n + eps);
}
// dx (+)= scale * (g w - y mean(g w y)); dweight += g y, with y = x * scale. One row.
static inline void rms_backward(const float* x, float scale, const float* weight, const float* g, int n, float* dx, bool add,
                                float* dweight) {
    vec dot = vzero(), s = vset(scale);
    for (int j = 0; j < n; j += 16) {
        vec gy = vmul(vload(g + j), vmul(vload(x + j), s));
        vstore(dweight + j, vadd(vload(dweight + j), gy));
        dot = vfma(gy, vload(weight + j), dot);
    }
    vec mean = vset(vsum(dot) / n);
    for (int j = 0; j < n; j += 16) {
        vec y = vmul(vload(x + j), s);
        vec gw = vmul(vload(g + j), vload(weight + j));
        vec d = vmul(s, vfnma(y, mean, gw));
        if (add) d = vadd(d, vload(dx + j));
        vstore(dx + j, d);
    }
}

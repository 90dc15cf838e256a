// Small matrix products for one core: bfloat16 operands, float32 sums (AVX-512 BF16).
//
// A "word" is a pair of bfloat16 values that are neighbours along the summed dimension, which is what vdpbf16ps multiplies.
// Every product here is C[i][j] (+)= sum_p <A(i, p), B(p, j)> over words p, where A(i, p) = a[i * row + p * step] and
// B(p, j) = b[p * ldb + j]. A row-major matrix is an A as it stands (row = columns / 2, step = 1); two rows woven into one
// row of words are a B, or the transpose of an A (row = 1, step = columns).
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef EXACT  // the same code in float32, slowly: tests compare it with autograd to float precision
typedef float bf16;
struct word {
    float low, high;
};
static inline bf16 to_bf16(float x) { return x; }
static inline __m512 load_bf16(const bf16* x) { return _mm512_loadu_ps(x); }
static inline void store_bf16(bf16* out, __m512 x) { _mm512_storeu_ps(out, x); }
static inline void weave(const bf16* first, const bf16* second, word* out, int columns) {
    for (int j = 0; j < columns; j++) out[j] = {first[j], second ? second[j] : 0.0f};
}
static inline void turn(const bf16* x, int ldx, int rows, int words, word* out, int ldo) {
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < words; p++) out[(size_t)p * ldo + i] = {x[(size_t)i * ldx + 2 * p], x[(size_t)i * ldx + 2 * p + 1]};
}
static inline void multiply(int rows, int columns, int words, const word* a, int row, int step, const word* b, int ldb, float* c,
                            int ldc, bool add) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            double sum = add ? c[(size_t)i * ldc + j] : 0;
            for (int p = 0; p < words; p++) {
                word x = a[(size_t)i * row + (size_t)p * step], y = b[(size_t)p * ldb + j];
                sum += (double)x.low * y.low + (double)x.high * y.high;
            }
            c[(size_t)i * ldc + j] = sum;
        }
}
#else
typedef uint16_t bf16;
typedef uint32_t word;

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

#endif

static inline void convert(const float* x, bf16* out, size_t n) {
    for (size_t i = 0; i < n; i += 16) store_bf16(out + i, _mm512_loadu_ps(x + i));
}
static inline void weave_rows(const bf16* x, int ldx, int rows, int columns, word* out, int ldo) {
    for (int i = 0; i < rows; i += 2)
        weave(x + (size_t)i * ldx, i + 1 < rows ? x + (size_t)(i + 1) * ldx : nullptr, out + (size_t)(i / 2) * ldo, columns);
}

// exp by a degree-6 polynomial on [-ln2/2, ln2/2]; relative error 2e-7.
static inline __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 y = _mm512_set1_ps(1.0f / 720);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

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

// y = x / rms(x) (before the weight), one row; returns 1 / rms.
static inline float rms_scale(const float* x, int n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < n; j += 16) {
        __m512 v = _mm512_loadu_ps(x + j);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / n + eps);
}
// dx (+)= scale * (g w - y mean(g w y)); dweight += g y, with y = x * scale. One row.
static inline void rms_backward(const float* x, float scale, const float* weight, const float* g, int n, float* dx, bool add,
                                float* dweight) {
    __m512 dot = _mm512_setzero_ps(), s = _mm512_set1_ps(scale);
    for (int j = 0; j < n; j += 16) {
        __m512 gy = _mm512_mul_ps(_mm512_loadu_ps(g + j), _mm512_mul_ps(_mm512_loadu_ps(x + j), s));
        _mm512_storeu_ps(dweight + j, _mm512_add_ps(_mm512_loadu_ps(dweight + j), gy));
        dot = _mm512_fmadd_ps(gy, _mm512_loadu_ps(weight + j), dot);
    }
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / n);
    for (int j = 0; j < n; j += 16) {
        __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + j), s);
        __m512 gw = _mm512_mul_ps(_mm512_loadu_ps(g + j), _mm512_loadu_ps(weight + j));
        __m512 d = _mm512_mul_ps(s, _mm512_fnmadd_ps(y, mean, gw));
        if (add) d = _mm512_add_ps(d, _mm512_loadu_ps(dx + j));
        _mm512_storeu_ps(dx + j, d);
    }
}

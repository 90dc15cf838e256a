// Sixteen floats at a time, under one set of names: one AVX-512 register where products are in bfloat16, else two of AVX2.
//
// HALF: activations and weights enter products as bfloat16 with float32 sums (AVX-512 BF16). Otherwise all is float32.
#pragma once
#include <immintrin.h>

#include <cmath>

#if defined(__AVX512BF16__) && !defined(EXACT)
#define HALF
typedef __m512 vec;

static inline vec vload(const float* x) { return _mm512_loadu_ps(x); }
static inline void vstore(float* x, vec v) { _mm512_storeu_ps(x, v); }
static inline vec vzero() { return _mm512_setzero_ps(); }
static inline vec vset(float x) { return _mm512_set1_ps(x); }
static inline vec vadd(vec x, vec y) { return _mm512_add_ps(x, y); }
static inline vec vsub(vec x, vec y) { return _mm512_sub_ps(x, y); }
static inline vec vmul(vec x, vec y) { return _mm512_mul_ps(x, y); }
static inline vec vdiv(vec x, vec y) { return _mm512_div_ps(x, y); }
static inline vec vmax(vec x, vec y) { return _mm512_max_ps(x, y); }
static inline vec vmin(vec x, vec y) { return _mm512_min_ps(x, y); }
static inline vec vsqrt(vec x) { return _mm512_sqrt_ps(x); }
static inline vec vfma(vec x, vec y, vec z) { return _mm512_fmadd_ps(x, y, z); }    // x y + z
static inline vec vfms(vec x, vec y, vec z) { return _mm512_fmsub_ps(x, y, z); }    // x y - z
static inline vec vfnma(vec x, vec y, vec z) { return _mm512_fnmadd_ps(x, y, z); }  // z - x y
static inline float vsum(vec x) { return _mm512_reduce_add_ps(x); }
static inline float vtop(vec x) { return _mm512_reduce_max_ps(x); }
static inline vec vround(vec x) { return _mm512_roundscale_ps(x, 0); }
static inline vec vscale(vec x, vec n) { return _mm512_scalef_ps(x, n); }  // x 2^n, n whole
// The first n of sixteen, zeros after them.
static inline vec vfirst(vec x, int n) {
    __mmask16 kept = n >= 16 ? 0xFFFF : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
    return _mm512_maskz_mov_ps(kept, x);
}
// Index of the first that equals value, -1 if none does.
static inline int vfind(vec x, vec value) {
    __mmask16 hit = _mm512_cmp_ps_mask(x, value, _CMP_EQ_OQ);
    return hit ? __builtin_ctz(hit) : -1;
}
#else
struct vec {
    __m256 a, b;
};

static inline vec vload(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
static inline void vstore(float* x, vec v) {
    _mm256_storeu_ps(x, v.a);
    _mm256_storeu_ps(x + 8, v.b);
}
static inline vec vzero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline vec vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline vec vadd(vec x, vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline vec vsub(vec x, vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline vec vmul(vec x, vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline vec vdiv(vec x, vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline vec vmax(vec x, vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline vec vmin(vec x, vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline vec vsqrt(vec x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline vec vfma(vec x, vec y, vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline vec vfms(vec x, vec y, vec z) { return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)}; }
static inline vec vfnma(vec x, vec y, vec z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
static inline float vsum(vec x) {
    __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float vtop(vec x) {
    __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
static inline vec vround(vec x) {
    constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, NEAREST), _mm256_round_ps(x.b, NEAREST)};
}
static inline __m256 power_of_two(__m256 n) {  // n whole, -126 to 127
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline vec vscale(vec x, vec n) { return vmul(x, {power_of_two(n.a), power_of_two(n.b)}); }
static inline vec vfirst(vec x, int n) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    __m256i count = _mm256_set1_epi32(n);
    return {_mm256_and_ps(x.a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low))),
            _mm256_and_ps(x.b, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high)))};
}
static inline int vfind(vec x, vec value) {
    int hit = _mm256_movemask_ps(_mm256_cmp_ps(x.a, value.a, _CMP_EQ_OQ)) |
              _mm256_movemask_ps(_mm256_cmp_ps(x.b, value.b, _CMP_EQ_OQ)) << 8;
    return hit ? __builtin_ctz(hit) : -1;
}
#endif

// exp by a degree-6 polynomial on [-ln2/2, ln2/2]; relative error 2e-7.
static inline vec vexp(vec x) {
    x = vmax(vmin(x, vset(88.0f)), vset(-87.0f));
    vec n = vround(vmul(x, vset(1.44269504f)));
    vec r = vfnma(n, vset(0.693145752f), x);
    r = vfnma(n, vset(1.42860677e-6f), r);
    vec y = vset(1.0f / 720);
    y = vfma(y, r, vset(1.0f / 120));
    y = vfma(y, r, vset(1.0f / 24));
    y = vfma(y, r, vset(1.0f / 6));
    y = vfma(y, r, vset(0.5f));
    y = vfma(y, r, vset(1.0f));
    y = vfma(y, r, vset(1.0f));
    return vscale(y, n);
}

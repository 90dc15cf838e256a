// The sparse half of a layer: x + experts(norm(x)), routed by a float32 router; and its backward pass.
#include "common.h"

namespace {
constexpr int CHUNK = 96;  // tokens of one expert worked on at a time: everything about them stays in the L2 cache

struct Order {  // assignments sorted by expert; within one expert in token order
    std::vector<int> start, slot;
};
void sort_by_expert(const int32_t* ids, int T, int K, int E, Order& order) {
    order.start.assign(E + 1, 0);
    order.slot.resize((size_t)T * K);
    for (int s = 0; s < T * K; s++) order.start[ids[s] + 1]++;
    for (int e = 0; e < E; e++) order.start[e + 1] += order.start[e];
    std::vector<int> next(order.start.begin(), order.start.end() - 1);
    for (int s = 0; s < T * K; s++) order.slot[next[ids[s]]++] = s;
}

// A few rows of x @ W.T in float32: rounding the router's logits would change which experts are chosen.
template <int ROWS>
void float_rows(int M, int E, const float* x, const float* turned, float* out) {
    for (int j = 0; j < E; j += 16) {
        __m512 sums[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) sums[i] = _mm512_setzero_ps();
        for (int m = 0; m < M; m++) {
            __m512 w = _mm512_loadu_ps(turned + m * E + j);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[i * M + m]), w, sums[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) _mm512_storeu_ps(out + (size_t)i * E + j, sums[i]);
    }
}
}  // namespace

extern "C" {

// logits_TE (float32), probabilities_TE, ids_TK by falling probability, ties to the lower id; counts_E of this shard.
void route(int T, int M, int E, int K, const float* hidden_TM, const float* router_EM, float* logits_TE, float* p_TE,
           int32_t* ids_TK, float* weights_TK, float* counts_E) {
    SCRATCH(float, turned, (size_t)M * E);
    for (int e = 0; e < E; e++)
        for (int m = 0; m < M; m++) turned[m * E + e] = router_EM[e * M + m];
    memset(counts_E, 0, E * sizeof(float));
    int t0 = 0;
    for (; t0 + 8 <= T; t0 += 8) float_rows<8>(M, E, hidden_TM + (size_t)t0 * M, turned, logits_TE + (size_t)t0 * E);
    for (; t0 < T; t0++) float_rows<1>(M, E, hidden_TM + (size_t)t0 * M, turned, logits_TE + (size_t)t0 * E);
    std::vector<float> left(E);
    for (int t = 0; t < T; t++) {
        const float* z = logits_TE + (size_t)t * E;
        float* p = p_TE + (size_t)t * E;
        __m512 top = _mm512_loadu_ps(z), sum = _mm512_setzero_ps();
        for (int j = 16; j < E; j += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(z + j));
        __m512 max = _mm512_set1_ps(_mm512_reduce_max_ps(top));
        for (int j = 0; j < E; j += 16) {
            __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(z + j), max));
            sum = _mm512_add_ps(sum, e);
            _mm512_storeu_ps(p + j, e);
        }
        __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
        for (int j = 0; j < E; j += 16) _mm512_storeu_ps(p + j, _mm512_mul_ps(_mm512_loadu_ps(p + j), scale));
        memcpy(left.data(), z, E * sizeof(float));
        for (int k = 0; k < K; k++) {
            __m512 best = _mm512_loadu_ps(left.data());
            for (int j = 16; j < E; j += 16) best = _mm512_max_ps(best, _mm512_loadu_ps(left.data() + j));
            __m512 value = _mm512_set1_ps(_mm512_reduce_max_ps(best));
            int id = 0;
            for (int j = 0; j < E; j += 16) {
                __mmask16 hit = _mm512_cmp_ps_mask(_mm512_loadu_ps(left.data() + j), value, _CMP_EQ_OQ);
                if (hit) {
                    id = j + __builtin_ctz(hit);
                    break;
                }
            }
            left[id] = -INFINITY;
            ids_TK[t * K + k] = id;
            weights_TK[t * K + k] = p[id];
            counts_E[id] += 1;
        }
    }
}

// out_TM = x_TM + sum_k w_tk expert(norm(x)). Saves what the backward pass needs: scale_T, hidden16_TM, and up_gate in
// bfloat16, in the order of the assignments sorted by expert.
void moe_forward(int T, int M, int F, int E, int K, const float* x_TM, const bf16* hidden16_TM, const int32_t* ids_TK,
                 const float* weights_TK, const float* gate_up, const float* down, bf16* saved, float* out_TM) {
    Order order;
    sort_by_expert(ids_TK, T, K, E, order);
    memcpy(out_TM, x_TM, (size_t)T * M * sizeof(float));
    SCRATCH(bf16, w16, (size_t)2 * F * M);
    SCRATCH(word, w_in, (size_t)F * M);
    SCRATCH(word, w_out, (size_t)F * M / 2);
    SCRATCH(bf16, rows, (size_t)CHUNK * M);
    SCRATCH(float, inner, (size_t)CHUNK * 2 * F);
    SCRATCH(bf16, act, (size_t)CHUNK * F);
    SCRATCH(float, y, (size_t)CHUNK * M);
    for (int e = 0; e < E; e++) {
        if (order.start[e] == order.start[e + 1]) continue;
        convert(gate_up + (size_t)e * 2 * F * M, w16, (size_t)2 * F * M);
        turn(w16, M, 2 * F, M / 2, w_in, 2 * F);
        convert(down + (size_t)e * F * M, w16, (size_t)F * M);
        turn(w16, F, M, F / 2, w_out, M);
        for (int s = order.start[e]; s < order.start[e + 1]; s += CHUNK) {
            int n = order.start[e + 1] - s < CHUNK ? order.start[e + 1] - s : CHUNK;
            for (int i = 0; i < n; i++) memcpy(rows + i * M, hidden16_TM + (size_t)(order.slot[s + i] / K) * M, M * sizeof(bf16));
            multiply(n, 2 * F, M / 2, (word*)rows, M / 2, 1, w_in, 2 * F, inner, 2 * F, false);
            convert(inner, saved + (size_t)s * 2 * F, (size_t)n * 2 * F);
            for (int i = 0; i < n; i++)
                for (int j = 0; j < F; j += 16) {
                    __m512 g = _mm512_loadu_ps(inner + i * 2 * F + j), u = _mm512_loadu_ps(inner + i * 2 * F + F + j);
                    __m512 d = _mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g)));
                    store_bf16(act + i * F + j, _mm512_mul_ps(_mm512_div_ps(g, d), u));
                }
            multiply(n, M, F / 2, (word*)act, F / 2, 1, w_out, M, y, M, false);
            for (int i = 0; i < n; i++) {
                int slot = order.slot[s + i];
                __m512 w = _mm512_set1_ps(weights_TK[slot]);
                float* o = out_TM + (size_t)(slot / K) * M;
                for (int j = 0; j < M; j += 16)
                    _mm512_storeu_ps(o + j, _mm512_fmadd_ps(w, _mm512_loadu_ps(y + i * M + j), _mm512_loadu_ps(o + j)));
            }
        }
    }
}

// Adds to d_gate_up and d_down; writes dhidden_TM (through the experts only) and dweights_TK.
void moe_backward(int T, int M, int F, int E, int K, const float* dout_TM, const bf16* hidden16_TM, const int32_t* ids_TK,
                  const float* weights_TK, const float* gate_up, const float* down, const bf16* saved, float* d_gate_up,
                  float* d_down, float* dhidden_TM, float* dweights_TK) {
    Order order;
    sort_by_expert(ids_TK, T, K, E, order);
    memset(dhidden_TM, 0, (size_t)T * M * sizeof(float));
    SCRATCH(bf16, dout16, (size_t)T * M);
    convert(dout_TM, dout16, (size_t)T * M);
    SCRATCH(bf16, w16, (size_t)2 * F * M);
    SCRATCH(word, w_in, (size_t)F * M);
    SCRATCH(word, w_out, (size_t)F * M / 2);
    SCRATCH(bf16, g_rows, (size_t)CHUNK * M);
    SCRATCH(word, g_pairs, (size_t)CHUNK / 2 * M);
    SCRATCH(word, x_pairs, (size_t)CHUNK / 2 * M);
    SCRATCH(float, dact, (size_t)CHUNK * F);
    SCRATCH(bf16, act, (size_t)CHUNK * F);
    SCRATCH(word, act_pairs, (size_t)CHUNK / 2 * F);
    SCRATCH(bf16, dinner, (size_t)CHUNK * 2 * F);
    SCRATCH(word, dinner_pairs, (size_t)CHUNK * F);
    SCRATCH(float, dx, (size_t)CHUNK * M);
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int e = 0; e < E; e++) {
        if (order.start[e] == order.start[e + 1]) continue;
        convert(gate_up + (size_t)e * 2 * F * M, w16, (size_t)2 * F * M);
        weave_rows(w16, M, 2 * F, M, w_in, M);
        convert(down + (size_t)e * F * M, w16, (size_t)F * M);
        weave_rows(w16, F, M, F, w_out, F);
        for (int s = order.start[e]; s < order.start[e + 1]; s += CHUNK) {
            int n = order.start[e + 1] - s < CHUNK ? order.start[e + 1] - s : CHUNK;
            for (int i = 0; i < n; i += 2) {
                size_t t0 = order.slot[s + i] / K, t1 = i + 1 < n ? order.slot[s + i + 1] / K : t0;
                bool odd = i + 1 >= n;
                memcpy(g_rows + i * M, dout16 + t0 * M, M * sizeof(bf16));
                if (!odd) memcpy(g_rows + (i + 1) * M, dout16 + t1 * M, M * sizeof(bf16));
                weave(dout16 + t0 * M, odd ? nullptr : dout16 + t1 * M, g_pairs + i / 2 * M, M);
                weave(hidden16_TM + t0 * M, odd ? nullptr : hidden16_TM + t1 * M, x_pairs + i / 2 * M, M);
            }
            multiply(n, F, M / 2, (word*)g_rows, M / 2, 1, w_out, F, dact, F, false);
            for (int i = 0; i < n; i++) {
                int slot = order.slot[s + i];
                __m512 w = _mm512_set1_ps(weights_TK[slot]), dw = _mm512_setzero_ps();
                for (int j = 0; j < F; j += 16) {
                    const bf16* inner = saved + (size_t)(s + i) * 2 * F + j;
                    __m512 g = load_bf16(inner), u = load_bf16(inner + F), d = _mm512_loadu_ps(dact + i * F + j);
                    __m512 sig = _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g))));
                    __m512 silu = _mm512_mul_ps(g, sig), a = _mm512_mul_ps(silu, u);
                    dw = _mm512_fmadd_ps(a, d, dw);
                    d = _mm512_mul_ps(d, w);
                    store_bf16(act + i * F + j, _mm512_mul_ps(a, w));
                    // d silu / d g = sig (1 + g (1 - sig))
                    __m512 slope = _mm512_mul_ps(sig, _mm512_fmadd_ps(g, _mm512_sub_ps(one, sig), one));
                    store_bf16(dinner + i * 2 * F + j, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
                    store_bf16(dinner + i * 2 * F + F + j, _mm512_mul_ps(d, silu));
                }
                dweights_TK[slot] = _mm512_reduce_add_ps(dw);
            }
            weave_rows(act, F, n, F, act_pairs, F);
            weave_rows(dinner, 2 * F, n, 2 * F, dinner_pairs, 2 * F);
            int pairs = (n + 1) / 2;
            multiply(M, F, pairs, g_pairs, 1, M, act_pairs, F, d_down + (size_t)e * F * M, F, true);
            multiply(2 * F, M, pairs, dinner_pairs, 1, 2 * F, x_pairs, M, d_gate_up + (size_t)e * 2 * F * M, M, true);
            multiply(n, M, F, (word*)dinner, F, 1, w_in, M, dx, M, false);
            for (int i = 0; i < n; i++) {
                float* o = dhidden_TM + (size_t)(order.slot[s + i] / K) * M;
                for (int j = 0; j < M; j += 16)
                    _mm512_storeu_ps(o + j, _mm512_add_ps(_mm512_loadu_ps(o + j), _mm512_loadu_ps(dx + i * M + j)));
            }
        }
    }
}

// The gradient of the router's logits: through the applied weights, the balance loss (coefficient_E: d loss / d p_te, the same
// for every token) and the z-loss (z_scale * lse^2; z_sum gets the sum of lse^2).
void route_backward(int T, int E, int K, const float* logits_TE, const float* p_TE, const int32_t* ids_TK, const float* dweights_TK,
                    const float* coefficient_E, float z_scale, bf16* dlogits16_TE, double* z_sum) {
    SCRATCH(float, dp, E);
    double total = 0;
    for (int t = 0; t < T; t++) {
        const float *p = p_TE + (size_t)t * E, *z = logits_TE + (size_t)t * E;
        // dot = sum_e p_e dp_e, the chosen experts' share added apart
        __m512 dots = _mm512_setzero_ps();
        for (int e = 0; e < E; e += 16) {
            __m512 c = _mm512_loadu_ps(coefficient_E + e);
            dots = _mm512_fmadd_ps(_mm512_loadu_ps(p + e), c, dots);
            _mm512_storeu_ps(dp + e, c);
        }
        float dot = _mm512_reduce_add_ps(dots);
        for (int k = 0; k < K; k++) {
            int id = ids_TK[t * K + k];
            float d = dweights_TK[t * K + k];
            dp[id] += d;
            dot += d * p[id];
        }
        // p = exp(z - lse), so lse = z - ln p, best read where p is largest
        int top = ids_TK[t * K];
        float lse = z[top] - std::log(p[top]);
        total += (double)lse * lse;
        __m512 shift = _mm512_set1_ps(z_scale * 2 * lse - dot);
        for (int e = 0; e < E; e += 16)
            store_bf16(dlogits16_TE + (size_t)t * E + e,
                       _mm512_mul_ps(_mm512_loadu_ps(p + e), _mm512_add_ps(_mm512_loadu_ps(dp + e), shift)));
    }
    *z_sum = total;
}

// hidden = x / rms(x) * weight, in float32 and bfloat16.
void norm_forward(int T, int M, float eps, const float* x_TM, const float* weight, float* scale_T, float* hidden_TM, bf16* hidden16_TM) {
    for (int t = 0; t < T; t++) {
        float s = scale_T[t] = rms_scale(x_TM + (size_t)t * M, M, eps);
        for (int j = 0; j < M; j += 16) {
            size_t at = (size_t)t * M + j;
            __m512 y = _mm512_mul_ps(_mm512_loadu_ps(weight + j), _mm512_mul_ps(_mm512_loadu_ps(x_TM + at), _mm512_set1_ps(s)));
            if (hidden_TM) _mm512_storeu_ps(hidden_TM + at, y);
            store_bf16(hidden16_TM + at, y);
        }
    }
}

// dx_TM = dout_TM (the residual path) + the norm's part.
void norm_backward(int T, int M, const float* x_TM, const float* scale_T, const float* weight, const float* dhidden_TM,
                   float* dx_TM, float* dweight) {
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * M;
        rms_backward(x_TM + at, scale_T[t], weight, dhidden_TM + at, M, dx_TM + at, true, dweight);
    }
}

// Sums the shards' gradients into the first one's, on one slice; returns the sum of squares.
double reduce(long start, long end, float* const* grads, int shards) {
    double total = 0;
    for (long block = start; block < end; block += 4096) {
        __m512 squares = _mm512_setzero_ps();
        for (long i = block; i < end && i < block + 4096; i += 16) {
            __m512 g = _mm512_loadu_ps(grads[0] + i);
            for (int s = 1; s < shards; s++) g = _mm512_add_ps(g, _mm512_loadu_ps(grads[s] + i));
            _mm512_storeu_ps(grads[0] + i, g);
            squares = _mm512_fmadd_ps(g, g, squares);
        }
        total += _mm512_reduce_add_ps(squares);
    }
    return total;
}

// AdamW (decoupled decay) on one slice of the flat parameters.
void adamw(long start, long end, float* w, const float* grad, float* m, float* v, float grad_scale, float rate, float decay,
           float beta1, float beta2, float eps, long step) {
    const __m512 correct1 = _mm512_set1_ps(rate / (1 - std::pow((double)beta1, (double)step)));
    const __m512 correct2 = _mm512_set1_ps(1 / (1 - std::pow((double)beta2, (double)step)));
    const __m512 b1 = _mm512_set1_ps(beta1), b2 = _mm512_set1_ps(beta2), keep = _mm512_set1_ps(1 - rate * decay);
    const __m512 c1 = _mm512_set1_ps(1 - beta1), c2 = _mm512_set1_ps(1 - beta2);
    for (long i = start; i < end; i += 16) {
        __m512 g = _mm512_mul_ps(_mm512_loadu_ps(grad + i), _mm512_set1_ps(grad_scale));
        __m512 a = _mm512_fmadd_ps(b1, _mm512_loadu_ps(m + i), _mm512_mul_ps(c1, g));
        __m512 b = _mm512_fmadd_ps(b2, _mm512_loadu_ps(v + i), _mm512_mul_ps(c2, _mm512_mul_ps(g, g)));
        _mm512_storeu_ps(m + i, a);
        _mm512_storeu_ps(v + i, b);
        __m512 root = _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(b, correct2)), _mm512_set1_ps(eps));
        __m512 change = _mm512_div_ps(_mm512_mul_ps(a, correct1), root);
        _mm512_storeu_ps(w + i, _mm512_fmsub_ps(keep, _mm512_loadu_ps(w + i), change));
    }
}
}

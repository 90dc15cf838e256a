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
        vec sums[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) sums[i] = vzero();
        for (int m = 0; m < M; m++) {
            vec w = vload(turned + m * E + j);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) sums[i] = vfma(vset(x[i * M + m]), w, sums[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) vstore(out + (size_t)i * E + j, sums[i]);
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
        vec top = vload(z), sum = vzero();
        for (int j = 16; j < E; j += 16) top = vmax(top, vload(z + j));
        vec max = vset(vtop(top));
        for (int j = 0; j < E; j += 16) {
            vec e = vexp(vsub(vload(z + j), max));
            sum = vadd(sum, e);
            vstore(p + j, e);
        }
        vec scale = vset(1.0f / vsum(sum));
        for (int j = 0; j < E; j += 16) vstore(p + j, vmul(vload(p + j), scale));
        memcpy(left.data(), z, E * sizeof(float));
        for (int k = 0; k < K; k++) {
            vec best = vload(left.data());
            for (int j = 16; j < E; j += 16) best = vmax(best, vload(left.data() + j));
            vec value = vset(vtop(best));
            int id = 0;
            for (int j = 0; j < E; j += 16) {
                int hit = vfind(vload(left.data() + j), value);
                if (hit >= 0) {
                    id = j + hit;
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
    SCRATCH(word, w_in, (size_t)2 * F * M / PAIR);
    SCRATCH(word, w_out, (size_t)F * M / PAIR);
    SCRATCH(bf16, rows, (size_t)CHUNK * M);
    SCRATCH(float, inner, (size_t)CHUNK * 2 * F);
    SCRATCH(bf16, act, (size_t)CHUNK * F);
    SCRATCH(float, y, (size_t)CHUNK * M);
    for (int e = 0; e < E; e++) {
        if (order.start[e] == order.start[e + 1]) continue;
        turn(converted(gate_up + (size_t)e * 2 * F * M, w16, (size_t)2 * F * M), M, 2 * F, M / PAIR, w_in, 2 * F);
        turn(converted(down + (size_t)e * F * M, w16, (size_t)F * M), F, M, F / PAIR, w_out, M);
        for (int s = order.start[e]; s < order.start[e + 1]; s += CHUNK) {
            int n = order.start[e + 1] - s < CHUNK ? order.start[e + 1] - s : CHUNK;
            for (int i = 0; i < n; i++) memcpy(rows + i * M, hidden16_TM + (size_t)(order.slot[s + i] / K) * M, M * sizeof(bf16));
            multiply(n, 2 * F, M / PAIR, (word*)rows, M / PAIR, 1, w_in, 2 * F, inner, 2 * F, false);
            convert(inner, saved + (size_t)s * 2 * F, (size_t)n * 2 * F);
            for (int i = 0; i < n; i++)
                for (int j = 0; j < F; j += 16) {
                    vec g = vload(inner + i * 2 * F + j), u = vload(inner + i * 2 * F + F + j);
                    vec d = vadd(vset(1.0f), vexp(vsub(vzero(), g)));
                    store_bf16(act + i * F + j, vmul(vdiv(g, d), u));
                }
            multiply(n, M, F / PAIR, (word*)act, F / PAIR, 1, w_out, M, y, M, false);
            for (int i = 0; i < n; i++) {
                int slot = order.slot[s + i];
                vec w = vset(weights_TK[slot]);
                float* o = out_TM + (size_t)(slot / K) * M;
                for (int j = 0; j < M; j += 16)
                    vstore(o + j, vfma(w, vload(y + i * M + j), vload(o + j)));
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
    SCRATCH(bf16, dout_scratch, (size_t)T * M);
    const bf16* dout16 = converted(dout_TM, dout_scratch, (size_t)T * M);
    SCRATCH(bf16, w16, (size_t)2 * F * M);
    SCRATCH(bf16, w16b, (size_t)F * M);
    SCRATCH(word, w_in, (size_t)2 * F * M / PAIR);
    SCRATCH(word, w_out, (size_t)F * M / PAIR);
    SCRATCH(bf16, g_rows, (size_t)CHUNK * M);
    SCRATCH(word, g_pairs, (size_t)CHUNK / PAIR * M);
    SCRATCH(word, x_pairs, (size_t)CHUNK / PAIR * M);
    SCRATCH(float, dact, (size_t)CHUNK * F);
    SCRATCH(bf16, act, (size_t)CHUNK * F);
    SCRATCH(word, act_scratch, (size_t)CHUNK / PAIR * F);
    SCRATCH(bf16, dinner, (size_t)CHUNK * 2 * F);
    SCRATCH(word, dinner_scratch, (size_t)CHUNK * 2 * F / PAIR);
    SCRATCH(float, dx, (size_t)CHUNK * M);
    const vec one = vset(1.0f);
    for (int e = 0; e < E; e++) {
        if (order.start[e] == order.start[e + 1]) continue;
        const word* in_pairs = woven(converted(gate_up + (size_t)e * 2 * F * M, w16, (size_t)2 * F * M), 2 * F, M, w_in);
        const word* out_pairs = woven(converted(down + (size_t)e * F * M, w16b, (size_t)F * M), M, F, w_out);
        for (int s = order.start[e]; s < order.start[e + 1]; s += CHUNK) {
            int n = order.start[e + 1] - s < CHUNK ? order.start[e + 1] - s : CHUNK;
            if (PAIR == 1)
                for (int i = 0; i < n; i++) {
                    size_t t = order.slot[s + i] / K;
                    memcpy(g_rows + i * M, dout16 + t * M, M * sizeof(bf16));
                    memcpy(x_pairs + i * M, hidden16_TM + t * M, M * sizeof(bf16));
                }
            else for (int i = 0; i < n; i += 2) {
                size_t t0 = order.slot[s + i] / K, t1 = i + 1 < n ? order.slot[s + i + 1] / K : t0;
                bool odd = i + 1 >= n;
                memcpy(g_rows + i * M, dout16 + t0 * M, M * sizeof(bf16));
                if (!odd) memcpy(g_rows + (i + 1) * M, dout16 + t1 * M, M * sizeof(bf16));
                weave(dout16 + t0 * M, odd ? nullptr : dout16 + t1 * M, g_pairs + i / 2 * M, M);
                weave(hidden16_TM + t0 * M, odd ? nullptr : hidden16_TM + t1 * M, x_pairs + i / 2 * M, M);
            }
            multiply(n, F, M / PAIR, (word*)g_rows, M / PAIR, 1, out_pairs, F, dact, F, false);
            for (int i = 0; i < n; i++) {
                int slot = order.slot[s + i];
                vec w = vset(weights_TK[slot]), dw = vzero();
                for (int j = 0; j < F; j += 16) {
                    const bf16* inner = saved + (size_t)(s + i) * 2 * F + j;
                    vec g = load_bf16(inner), u = load_bf16(inner + F), d = vload(dact + i * F + j);
                    vec sig = vdiv(one, vadd(one, vexp(vsub(vzero(), g))));
                    vec silu = vmul(g, sig), a = vmul(silu, u);
                    dw = vfma(a, d, dw);
                    d = vmul(d, w);
                    store_bf16(act + i * F + j, vmul(a, w));
                    // d silu / d g = sig (1 + g (1 - sig))
                    vec slope = vmul(sig, vfma(g, vsub(one, sig), one));
                    store_bf16(dinner + i * 2 * F + j, vmul(vmul(d, u), slope));
                    store_bf16(dinner + i * 2 * F + F + j, vmul(d, silu));
                }
                dweights_TK[slot] = vsum(dw);
            }
            const word *act_pairs = woven(act, n, F, act_scratch), *dinner_pairs = woven(dinner, n, 2 * F, dinner_scratch);
            int pairs = words_of(n);
            multiply(M, F, pairs, PAIR == 1 ? (word*)g_rows : g_pairs, 1, M, act_pairs, F, d_down + (size_t)e * F * M, F, true);
            multiply(2 * F, M, pairs, dinner_pairs, 1, 2 * F, x_pairs, M, d_gate_up + (size_t)e * 2 * F * M, M, true);
            multiply(n, M, 2 * F / PAIR, (word*)dinner, 2 * F / PAIR, 1, in_pairs, M, dx, M, false);
            for (int i = 0; i < n; i++) {
                float* o = dhidden_TM + (size_t)(order.slot[s + i] / K) * M;
                for (int j = 0; j < M; j += 16)
                    vstore(o + j, vadd(vload(o + j), vload(dx + i * M + j)));
            }
        }
    }
}

// The gradient of the router's logits, in two parts: dtask16_TE through the applied weights, and dlogits16_TE, which has in
// addition that of the balance loss (coefficient_E: d loss / d p_te, the same for every token) and of the z-loss
// (z_scale * lse^2; z_sum gets the sum of lse^2).
void route_backward(int T, int E, int K, const float* logits_TE, const float* p_TE, const int32_t* ids_TK, const float* dweights_TK,
                    const float* coefficient_E, float z_scale, bf16* dtask16_TE, bf16* dlogits16_TE, double* z_sum) {
    SCRATCH(float, dp, E);
    double total = 0;
    for (int t = 0; t < T; t++) {
        const float *p = p_TE + (size_t)t * E, *z = logits_TE + (size_t)t * E;
        vec dots = vzero();
        for (int e = 0; e < E; e += 16) {
            dots = vfma(vload(p + e), vload(coefficient_E + e), dots);
            vstore(dp + e, vzero());
        }
        float balance_dot = vsum(dots), task_dot = 0;
        for (int k = 0; k < K; k++) {
            int id = ids_TK[t * K + k];
            dp[id] = dweights_TK[t * K + k];
            task_dot += dp[id] * p[id];
        }
        // p = exp(z - lse), so lse = z - ln p, best read where p is largest
        int top = ids_TK[t * K];
        float lse = z[top] - std::log(p[top]);
        total += (double)lse * lse;
        vec shift = vset(z_scale * 2 * lse - balance_dot), dot = vset(task_dot);
        for (int e = 0; e < E; e += 16) {
            vec task = vmul(vload(p + e), vsub(vload(dp + e), dot));
            store_bf16(dtask16_TE + (size_t)t * E + e, task);
            store_bf16(dlogits16_TE + (size_t)t * E + e, vfma(vload(p + e), vadd(vload(coefficient_E + e), shift), task));
        }
    }
    *z_sum = total;
}

// hidden = x / rms(x) * weight, in float32 and bfloat16.
void norm_forward(int T, int M, float eps, const float* x_TM, const float* weight, float* scale_T, float* hidden_TM, bf16* hidden16_TM) {
    for (int t = 0; t < T; t++) {
        float s = scale_T[t] = rms_scale(x_TM + (size_t)t * M, M, eps);
        for (int j = 0; j < M; j += 16) {
            size_t at = (size_t)t * M + j;
            vec y = vmul(vload(weight + j), vmul(vload(x_TM + at), vset(s)));
            if (hidden_TM) vstore(hidden_TM + at, y);
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
        vec squares = vzero();
        for (long i = block; i < end && i < block + 4096; i += 16) {
            vec g = vload(grads[0] + i);
            for (int s = 1; s < shards; s++) g = vadd(g, vload(grads[s] + i));
            vstore(grads[0] + i, g);
            squares = vfma(g, g, squares);
        }
        total += vsum(squares);
    }
    return total;
}

// AdamW (decoupled decay) on one slice of the flat parameters.
void adamw(long start, long end, float* w, const float* grad, float* m, float* v, float grad_scale, float rate, float decay,
           float beta1, float beta2, float eps, long step) {
    const vec correct1 = vset(rate / (1 - std::pow((double)beta1, (double)step)));
    const vec correct2 = vset(1 / (1 - std::pow((double)beta2, (double)step)));
    const vec b1 = vset(beta1), b2 = vset(beta2), keep = vset(1 - rate * decay);
    const vec c1 = vset(1 - beta1), c2 = vset(1 - beta2);
    for (long i = start; i < end; i += 16) {
        vec g = vmul(vload(grad + i), vset(grad_scale));
        vec a = vfma(b1, vload(m + i), vmul(c1, g));
        vec b = vfma(b2, vload(v + i), vmul(c2, vmul(g, g)));
        vstore(m + i, a);
        vstore(v + i, b);
        vec root = vadd(vsqrt(vmul(b, correct2)), vset(eps));
        vec change = vdiv(vmul(a, correct1), root);
        vstore(w + i, vfms(keep, vload(w + i), change));
    }
}
}

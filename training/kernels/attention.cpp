// The dense half of a layer: x + o(attention(rope(norm(q)), rope(norm(k)), v)), each document on its own; and its backward.
#include "common.h"

namespace {
constexpr int BLOCK = 32;  // query rows worked on at a time

inline int up(int n, int to) { return (n + to - 1) / to * to; }

// Half-split rotary embedding of one row of all heads; sign -1 turns it back.
void rotate(float* __restrict x, int heads, int size, const float* __restrict cos, const float* __restrict sin, float sign) {
    int half = size / 2;
    for (int h = 0; h < heads; h++, x += size)
        for (int j = 0; j < half; j++) {
            float a = x[j], b = x[j + half], s = sign * sin[j];
            x[j] = a * cos[j] - b * s;
            x[j + half] = b * cos[j] + a * s;
        }
}

// One head of one document: q, k, v point at its first row and column, rows M apart.
struct Head {
    int L, M, D, padded;  // padded: keys rounded up to whole zmm columns
};

// Scores of query rows i0..i0+rows against keys 0..keys; masked entries are left for the caller.
void scores(const Head& head, const bf16* q, const word* k_turned, int i0, int rows, int keys, float* out) {
    multiply(rows, keys, head.D / PAIR, (const word*)(q + (size_t)i0 * head.M), head.M / PAIR, 1, k_turned, head.padded, out, head.padded, false);
}

void forward_head(const Head& head, const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int lse_stride) {
    int L = head.L, P = head.padded, D = head.D;
    SCRATCH(word, k_turned, (size_t)D / PAIR * P);
    SCRATCH(word, v_pairs, (size_t)P / PAIR * D);
    SCRATCH(float, s, (size_t)BLOCK * P);
    SCRATCH(bf16, p, (size_t)BLOCK * P);
    SCRATCH(float, o, (size_t)BLOCK * D);
    for (int w = 0; w < D / PAIR; w++) memset(k_turned + (size_t)w * P + L, 0, (P - L) * sizeof(word));
    memset(v_pairs, 0, (size_t)P / PAIR * D * sizeof(word));
    turn(k, head.M, L, D / PAIR, k_turned, P);
    weave_rows(v, head.M, L, D, v_pairs, D);
    for (int i0 = 0; i0 < L; i0 += BLOCK) {
        int rows = L - i0 < BLOCK ? L - i0 : BLOCK, keys = up(i0 + rows, 16);
        scores(head, q, k_turned, i0, rows, keys, s);
        float inverse[BLOCK];
        for (int i = 0; i < rows; i++) {
            float* row = s + (size_t)i * P;
            int seen = i0 + i + 1;
            for (int j = seen; j < keys; j++) row[j] = -INFINITY;
            vec top = vload(row), sum = vzero();
            for (int j = 16; j < keys; j += 16) top = vmax(top, vload(row + j));
            float max = vtop(top);
            for (int j = 0; j < keys; j += 16) {
                // vexp stops at exp(-87), about 1e-38: nothing beside the row's maximum of 1
                vec e = vexp(vsub(vload(row + j), vset(max)));
                sum = vadd(sum, e);
                store_bf16(p + (size_t)i * P + j, e);
            }
            float total = vsum(sum);
            inverse[i] = 1.0f / total;
            lse[(size_t)(i0 + i) * lse_stride] = max + std::log(total);
        }
        multiply(rows, D, keys / PAIR, (word*)p, P / PAIR, 1, v_pairs, D, o, D, false);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < D; j += 16)
                store_bf16(out + (size_t)(i0 + i) * head.M + j, vmul(vload(o + i * D + j), vset(inverse[i])));
    }
}

// dq, dk, dv are float32 rows, 3M apart.
void backward_head(const Head& head, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout, const float* lse,
                   int lse_stride, float* dq, float* dk, float* dv) {
    int L = head.L, P = head.padded, D = head.D, M = head.M;
    SCRATCH(word, k_turned, (size_t)D / PAIR * P);
    SCRATCH(word, v_turned, (size_t)D / PAIR * P);
    SCRATCH(word, k_pairs, (size_t)P / PAIR * D);
    SCRATCH(word, q_pairs, (size_t)BLOCK / PAIR * D);
    SCRATCH(word, do_pairs, (size_t)BLOCK / PAIR * D);
    SCRATCH(float, s, (size_t)BLOCK * P);
    SCRATCH(float, dp, (size_t)BLOCK * P);
    SCRATCH(bf16, p16, (size_t)BLOCK * P);
    SCRATCH(bf16, ds16, (size_t)BLOCK * P);
    SCRATCH(word, p_scratch, (size_t)BLOCK / PAIR * P);
    SCRATCH(word, ds_scratch, (size_t)BLOCK / PAIR * P);
    for (int w = 0; w < D / PAIR; w++) {
        memset(k_turned + (size_t)w * P + L, 0, (P - L) * sizeof(word));
        memset(v_turned + (size_t)w * P + L, 0, (P - L) * sizeof(word));
    }
    memset(k_pairs, 0, (size_t)P / PAIR * D * sizeof(word));
    turn(k, M, L, D / PAIR, k_turned, P);
    turn(v, M, L, D / PAIR, v_turned, P);
    weave_rows(k, M, L, D, k_pairs, D);
    for (int i = 0; i < L; i++) {
        memset(dk + (size_t)i * 3 * M, 0, D * sizeof(float));
        memset(dv + (size_t)i * 3 * M, 0, D * sizeof(float));
    }
    for (int i0 = 0; i0 < L; i0 += BLOCK) {
        int rows = L - i0 < BLOCK ? L - i0 : BLOCK, keys = up(i0 + rows, 16), pairs = words_of(rows);
        scores(head, q, k_turned, i0, rows, keys, s);
        scores(head, dout, v_turned, i0, rows, keys, dp);
        for (int i = 0; i < rows; i++) {
            size_t at = (size_t)(i0 + i) * M;
            vec dot = vzero();
            for (int j = 0; j < D; j += 16) dot = vfma(load_bf16(out + at + j), load_bf16(dout + at + j), dot);
            vec delta = vset(vsum(dot)), l = vset(lse[(size_t)(i0 + i) * lse_stride]);
            int seen = i0 + i + 1;
            for (int j = 0; j < keys; j += 16) {
                vec p = vfirst(vexp(vsub(vload(s + (size_t)i * P + j), l)), seen - j);
                store_bf16(p16 + (size_t)i * P + j, p);
                store_bf16(ds16 + (size_t)i * P + j, vmul(p, vsub(vload(dp + (size_t)i * P + j), delta)));
            }
        }
        const word *p_pairs = woven(p16, rows, P, p_scratch, keys), *ds_pairs = woven(ds16, rows, P, ds_scratch, keys);
        weave_rows(q + (size_t)i0 * M, M, rows, D, q_pairs, D);
        weave_rows(dout + (size_t)i0 * M, M, rows, D, do_pairs, D);
        multiply(rows, D, keys / PAIR, (word*)ds16, P / PAIR, 1, k_pairs, D, dq + (size_t)i0 * 3 * M, 3 * M, false);
        int real = i0 + rows;  // keys beyond the document have no row to add to
        multiply(real, D, pairs, ds_pairs, 1, P, q_pairs, D, dk, 3 * M, true);
        multiply(real, D, pairs, p_pairs, 1, P, do_pairs, D, dv, 3 * M, true);
    }
}
}  // namespace

extern "C" {

void to_half(long n, const float* x, bf16* out) { convert(x, out, n); }

// y_TN (+)= x16_TK @ W_NK.T
void linear_forward(int T, int K, int N, const bf16* x16, const float* weight, float* y, int add) {
    SCRATCH(bf16, w16, (size_t)N * K);
    SCRATCH(word, turned, (size_t)K / PAIR * N);
    turn(converted(weight, w16, (size_t)N * K), K, N, K / PAIR, turned, N);
    for (int t = 0; t < T; t += 48) {
        int rows = T - t < 48 ? T - t : 48;
        multiply(rows, N, K / PAIR, (const word*)(x16 + (size_t)t * K), K / PAIR, 1, turned, N, y + (size_t)t * N, N, add);
    }
}
// dx_TK (+)= dy16_TN @ W_NK;  dW_NK += dy16.T @ x16. Either may be null: not wanted.
void linear_backward(int T, int K, int N, const bf16* dy16, const bf16* x16, const float* weight, float* dx, float* dweight, int add) {
    SCRATCH(bf16, w16, (size_t)N * K);
    SCRATCH(word, scratch, (size_t)N / PAIR * K);
    const word* pairs = woven(converted(weight, w16, (size_t)N * K), N, K, scratch);
    constexpr int ROWS = 128;
    SCRATCH(word, dy_scratch, (size_t)ROWS / PAIR * N);
    SCRATCH(word, x_scratch, (size_t)ROWS / PAIR * K);
    for (int t = 0; t < T; t += ROWS) {
        int rows = T - t < ROWS ? T - t : ROWS;
        if (dx)
            multiply(rows, K, N / PAIR, (const word*)(dy16 + (size_t)t * N), N / PAIR, 1, pairs, K, dx + (size_t)t * K, K, add);
        if (!dweight) continue;
        const word* dy_pairs = woven(dy16 + (size_t)t * N, rows, N, dy_scratch);
        const word* x_pairs = woven(x16 + (size_t)t * K, rows, K, x_scratch);
        multiply(N, K, words_of(rows), dy_pairs, 1, N, x_pairs, K, dweight, K, true);
    }
}

// raw_T3M: q, k, v before their norms (kept for the backward pass). positions_T index the rotary tables [*, size / 2];
// the softmax scale is folded into q. starts: document bounds, num_documents + 1 of them.
void attention_forward(int T, int M, int heads, float eps, const float* raw, const float* q_weight, const float* k_weight,
                       const float* cos, const float* sin, const int32_t* positions, const int32_t* starts, int documents,
                       float* q_scale, float* k_scale, bf16* q16, bf16* k16, bf16* v16, float* lse_TH, bf16* out16) {
    int D = M / heads;
    float softmax_scale = 1.0f / std::sqrt((float)D);
    SCRATCH(float, row, M);
    for (int t = 0; t < T; t++) {
        const float *x = raw + (size_t)t * 3 * M, *c = cos + (size_t)positions[t] * D / 2, *s = sin + (size_t)positions[t] * D / 2;
        for (int which = 0; which < 2; which++) {
            const float *source = x + which * M, *weight = which ? k_weight : q_weight;
            float scale = rms_scale(source, M, eps), extra = which ? 1.0f : softmax_scale;
            (which ? k_scale : q_scale)[t] = scale;
            for (int j = 0; j < M; j += 16)
                vstore(row + j, vmul(vmul(vload(source + j), vset(scale * extra)),
                                                        vload(weight + j)));
            rotate(row, heads, D, c, s, 1.0f);
            convert(row, (which ? k16 : q16) + (size_t)t * M, M);
        }
        convert(x + 2 * M, v16 + (size_t)t * M, M);
    }
    for (int d = 0; d < documents; d++)
        for (int h = 0; h < heads; h++) {
            size_t at = (size_t)starts[d] * M + h * D;
            Head head = {starts[d + 1] - starts[d], M, D, up(starts[d + 1] - starts[d], 64)};
            forward_head(head, q16 + at, k16 + at, v16 + at, out16 + at, lse_TH + (size_t)starts[d] * heads + h, heads);
        }
}

// draw16_T3M: the gradient before the norms; adds to the norms' weight gradients.
void attention_backward(int T, int M, int heads, const float* raw, const float* q_weight, const float* k_weight, const float* cos,
                        const float* sin, const int32_t* positions, const int32_t* starts, int documents, const float* q_scale,
                        const float* k_scale, const bf16* q16, const bf16* k16, const bf16* v16, const float* lse_TH,
                        const bf16* out16, const bf16* dout16, float* dq_weight, float* dk_weight, bf16* draw16) {
    int D = M / heads;
    float softmax_scale = 1.0f / std::sqrt((float)D);
    SCRATCH(float, draw, (size_t)T * 3 * M);
    SCRATCH(float, row, M);
    for (int d = 0; d < documents; d++)
        for (int h = 0; h < heads; h++) {
            size_t at = (size_t)starts[d] * M + h * D;
            float* grad = draw + (size_t)starts[d] * 3 * M + h * D;
            Head head = {starts[d + 1] - starts[d], M, D, up(starts[d + 1] - starts[d], 64)};
            backward_head(head, q16 + at, k16 + at, v16 + at, out16 + at, dout16 + at, lse_TH + (size_t)starts[d] * heads + h, heads,
                          grad, grad + M, grad + 2 * M);
        }
    for (int t = 0; t < T; t++) {
        const float *x = raw + (size_t)t * 3 * M, *c = cos + (size_t)positions[t] * D / 2, *s = sin + (size_t)positions[t] * D / 2;
        float* grad = draw + (size_t)t * 3 * M;
        for (int which = 0; which < 2; which++) {
            rotate(grad + which * M, heads, D, c, s, -1.0f);
            if (!which)
                for (int j = 0; j < M; j++) grad[j] *= softmax_scale;
            rms_backward(x + which * M, (which ? k_scale : q_scale)[t], which ? k_weight : q_weight, grad + which * M, M, row, false,
                         which ? dk_weight : dq_weight);
            convert(row, draw16 + (size_t)t * 3 * M + which * M, M);
        }
        convert(grad + 2 * M, draw16 + (size_t)t * 3 * M + 2 * M, M);
    }
}

// Cross-entropy of hidden16_TM @ W_VM.T against targets (negative: not counted), as a sum; dhidden_TM and dW (added), both
// already times grad_scale. No more than `ROWS` rows of logits exist at a time.
void head_loss(int T, int M, int V, const bf16* hidden16, const float* weight, const int32_t* targets, float grad_scale,
               float* dhidden, float* dweight, double* loss) {
    constexpr int ROWS = 256;
    const int S = V + 48;  // rows a power of two apart would share few cache sets
    SCRATCH(bf16, w16, (size_t)V * M);
    SCRATCH(word, turned, (size_t)M / PAIR * S);
    SCRATCH(word, scratch, (size_t)V / PAIR * M);
    SCRATCH(float, logits, (size_t)ROWS * S);
    SCRATCH(bf16, d16, (size_t)ROWS * S);
    SCRATCH(word, d_scratch, (size_t)ROWS / PAIR * S);
    SCRATCH(word, x_scratch, (size_t)ROWS / PAIR * M);
    const bf16* half = converted(weight, w16, (size_t)V * M);
    turn(half, M, V, M / PAIR, turned, S);
    const word* pairs = woven(half, V, M, scratch);
    double total = 0;
    for (int t0 = 0; t0 < T; t0 += ROWS) {
        int rows = T - t0 < ROWS ? T - t0 : ROWS;
        multiply(rows, V, M / PAIR, (const word*)(hidden16 + (size_t)t0 * M), M / PAIR, 1, turned, S, logits, S, false);
        for (int i = 0; i < rows; i++) {
            float* z = logits + (size_t)i * S;
            bf16* d = d16 + (size_t)i * S;
            int target = targets[t0 + i];
            if (target < 0) {
                memset(d, 0, V * sizeof(bf16));
                continue;
            }
            vec top = vload(z), sum = vzero();
            for (int j = 16; j < V; j += 16) top = vmax(top, vload(z + j));
            float max = vtop(top), right = z[target];
            for (int j = 0; j < V; j += 16) {
                vec e = vexp(vsub(vload(z + j), vset(max)));
                sum = vadd(sum, e);
                vstore(z + j, e);
            }
            float norm = vsum(sum);
            total += max + std::log(norm) - right;
            vec scale = vset(grad_scale / norm);
            for (int j = 0; j < V; j += 16) store_bf16(d + j, vmul(vload(z + j), scale));
            d[target] = to_bf16(grad_scale * (z[target] / norm - 1.0f));
        }
        multiply(rows, M, V / PAIR, (word*)d16, S / PAIR, 1, pairs, M, dhidden + (size_t)t0 * M, M, false);
        const word* d_pairs = woven(d16, rows, S, d_scratch, V);
        const word* x_pairs = woven(hidden16 + (size_t)t0 * M, rows, M, x_scratch);
        multiply(V, M, words_of(rows), d_pairs, 1, S, x_pairs, M, dweight, M, true);
    }
    *loss = total;
}
}

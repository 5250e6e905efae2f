// A pre-LN block of the practical preset, one sequence at a time, so that all it needs of a sequence stays in L2:
//   h1 = h + W_o Attn(W_qkv LN(h) + b) + b_o;  out = h1 + W_2 relu(W_1 LN(h1) + b_1) + b_2
// Backward keeps only h and the mixed values [B,N,D] of forward and computes the rest again.
//
// Sequences are dealt to a fixed number of groups; each group sums its weight gradients in its own memory, and the
// groups are added in order: the result depends neither on the number of threads nor on which thread did what.
#include <stdlib.h>

#include "core.h"
#include "norm.h"
#include "product.h"
#include "threads.h"

namespace icrl {

constexpr long kGroups = 16;

struct Sizes {
  long batch, tokens, width, heads, inner;
};

// The parameters in the order of the module, one after the other; the layout of their gradients too.
template <class Float>
struct Parameters {
  Float *gain1, *bias1, *w_qkv, *b_qkv, *w_o, *b_o, *gain2, *bias2, *w_1, *b_1, *w_2, *b_2;
};

ICRL_INLINE long parameter_count(const Sizes& s) {
  return 4 * s.width + 3 * s.width * (s.width + 1) + s.width * (s.width + 1) + s.inner * (s.width + 1) +
         s.width * (s.inner + 1);
}

ICRL_INLINE Parameters<float> laid_out(const Sizes& s, float* at) {
  const long d = s.width;
  auto take = [&at](long n) {
    float* here = at;
    at += n;
    return here;
  };
  Parameters<float> p;
  p.gain1 = take(d), p.bias1 = take(d), p.w_qkv = take(3 * d * d), p.b_qkv = take(3 * d);
  p.w_o = take(d * d), p.b_o = take(d), p.gain2 = take(d), p.bias2 = take(d);
  p.w_1 = take(s.inner * d), p.b_1 = take(s.inner), p.w_2 = take(d * s.inner), p.b_2 = take(d);
  return p;
}

// W^T [in, out] of W [out, in].
ICRL_INLINE void transposed(const float* w, long out, long in, float* to) {
  for (long i = 0; i < in; ++i)
    for (long o = 0; o < out; ++o) to[i * out + o] = w[o * in + i];
}

struct Block {
  Sizes s;
  Parameters<const float> p;
  float epsilon, scale;
  // made once for all threads
  float *qkv_T = nullptr, *o_T = nullptr, *w_1_T = nullptr, *w_2_T = nullptr, *factor = nullptr;

  long attention_floats() const {
    return most(attend_scratch<float>(s.tokens, dim()), backward_scratch<float>(s.tokens, dim(), dim()));
  }
  int dim() const { return int(s.width / s.heads); }
  long shared_floats() const { return 4 * s.width * s.width + 2 * s.width * s.inner + s.tokens; }
  long forward_floats() const {
    return 3 * s.tokens * s.width + kRows * (2 * s.width + s.inner) + attention_floats();
  }
  long backward_floats() const {
    return 7 * s.tokens * s.width + kRows * (3 * s.width + 2 * s.inner) + attention_floats();
  }

  void prepare(float* memory) {
    const long d = s.width;
    qkv_T = memory, o_T = qkv_T + 3 * d * d, w_1_T = o_T + d * d, w_2_T = w_1_T + d * s.inner;
    factor = w_2_T + d * s.inner;
    transposed(p.w_qkv, 3 * d, d, qkv_T);
    transposed(p.w_o, d, d, o_T);
    transposed(p.w_1, s.inner, d, w_1_T);
    transposed(p.w_2, d, s.inner, w_2_T);
    for (long i = 0; i < s.tokens; ++i) factor[i] = scale / float(i + 1);
  }

  Norm norm1() const { return {p.gain1, p.bias1, s.width, epsilon}; }
  Norm norm2() const { return {p.gain2, p.bias2, s.width, epsilon}; }

  // Head m of the packed projection [N, 3, heads, dim].
  Pair<float> pair(const float* qkv, long m) const {
    const long d = s.width;
    const float* q = qkv + m * dim();
    return {{s.tokens, s.tokens, 0, 0, true}, dim(), dim(), q, q + d, q + 2 * d, 3 * d, 3 * d, 3 * d, factor};
  }

  void project(const float* h, float* x, float* qkv) const {
    Moments of;
    const long d = s.width;
    for (long t = 0; t < s.tokens; t += kRows) {
      const long n = least(kRows, s.tokens - t);
      norm1().forward(n, h + t * d, x, of);
      product(n, d, 3 * d, Left{x, d, 1}, qkv_T, 3 * d, qkv + t * 3 * d, 3 * d, Bias{p.b_qkv});
    }
  }

  void forward(const float* h, float* out, float* mixed, float* memory) const {
    const long d = s.width;
    float *qkv = memory, *x = qkv + 3 * s.tokens * d, *h1 = x + kRows * d, *a = h1 + kRows * d;
    float* scratch = a + kRows * s.inner;
    Moments of;
    project(h, x, qkv);
    for (long m = 0; m < s.heads; ++m) attend(pair(qkv, m), mixed + m * dim(), d, scratch);
    for (long t = 0; t < s.tokens; t += kRows) {
      const long n = least(kRows, s.tokens - t);
      product(n, d, d, Left{mixed + t * d, d, 1}, o_T, d, h1, d, BiasResidual{p.b_o, h + t * d, d});
      norm2().forward(n, h1, x, of);
      product(n, d, s.inner, Left{x, d, 1}, w_1_T, s.inner, a, s.inner, BiasRelu{p.b_1});
      product(n, s.inner, d, Left{a, s.inner, 1}, w_2_T, d, out + t * d, d, BiasResidual{p.b_2, h1, d});
    }
  }

  // dW [out, in] += dy^T x and db += sum of dy, over n rows
  ICRL_INLINE static void weights(long n, long out, long in, const float* dy, const float* x, float* dw, float* db) {
    product(out, n, in, Left{dy, 1, out}, x, in, dw, in, Add{});
    add_rows(n, out, dy, db);
  }

  void backward(const float* h, const float* mixed, const float* dout, float* dh, const Parameters<float>& grad,
                float* memory) const {
    const long d = s.width;
    float *qkv = memory, *dqkv = qkv + 3 * s.tokens * d, *dmixed = dqkv + 3 * s.tokens * d;
    float *x = dmixed + s.tokens * d, *dx = x + kRows * d, *h1 = dx + kRows * d, *a = h1 + kRows * d;
    float *da = a + kRows * s.inner, *scratch = da + kRows * s.inner;
    Moments of;
    project(h, x, qkv);
    for (long t = 0; t < s.tokens; t += kRows) {
      const long n = least(kRows, s.tokens - t);
      const float *mixed_ = mixed + t * d, *dout_ = dout + t * d;
      float *dh1 = dh + t * d, *dmixed_ = dmixed + t * d;
      product(n, d, d, Left{mixed_, d, 1}, o_T, d, h1, d, BiasResidual{p.b_o, h + t * d, d});
      norm2().forward(n, h1, x, of);
      product(n, d, s.inner, Left{x, d, 1}, w_1_T, s.inner, a, s.inner, BiasRelu{p.b_1});
      product(n, d, s.inner, Left{dout_, d, 1}, p.w_2, s.inner, da, s.inner, Gate{a, s.inner});
      weights(n, d, s.inner, dout_, a, grad.w_2, grad.b_2);
      product(n, s.inner, d, Left{da, s.inner, 1}, p.w_1, d, dx, d, Put{});
      weights(n, s.inner, d, da, x, grad.w_1, grad.b_1);
      norm2().backward(n, h1, of, dx, dout_, dh1, grad.gain2, grad.bias2);
      product(n, d, d, Left{dh1, d, 1}, p.w_o, d, dmixed_, d, Put{});
      weights(n, d, d, dh1, mixed_, grad.w_o, grad.b_o);
    }
    memset(dqkv, 0, sizeof(float) * 3 * s.tokens * d);  // attend_backward adds
    for (long m = 0; m < s.heads; ++m) {
      float* dq = dqkv + m * dim();
      attend_backward(pair(qkv, m), dmixed + m * dim(), d, {dq, dq + d, dq + 2 * d, 3 * d, 3 * d, 3 * d}, scratch);
    }
    for (long t = 0; t < s.tokens; t += kRows) {
      const long n = least(kRows, s.tokens - t);
      norm1().forward(n, h + t * d, x, of);
      product(n, 3 * d, d, Left{dqkv + t * 3 * d, 3 * d, 1}, p.w_qkv, d, dx, d, Put{});
      weights(n, 3 * d, d, dqkv + t * 3 * d, x, grad.w_qkv, grad.b_qkv);
      norm1().backward(n, h + t * d, of, dx, dh + t * d, dh + t * d, grad.gain1, grad.bias1);
    }
  }
};

inline Block made(const Sizes* sizes, const float* const* p, float epsilon, float scale) {
  return {*sizes, {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]}, epsilon, scale};
}

}  // namespace icrl

// h, out and mixed [B,N,D]; twelve parameters in the order of the module; false: no memory.
ICRL_EXPORT int practical_block_forward(const icrl::Sizes* sizes, const float* const* parameters, float epsilon, float scale,
                                   const float* h, float* out, float* mixed, int threads) {
  using namespace icrl;
  Block block = made(sizes, parameters, epsilon, scale);
  const Sizes& s = block.s;
  threads = threads_for(s.batch, threads);
  const long sequence = s.tokens * s.width, each = round_up(block.forward_floats(), 16);
  float* memory = static_cast<float*>(aligned_alloc(64, 4 * (round_up(block.shared_floats(), 16) + threads * each)));
  if (!memory) return 0;
  block.prepare(memory);
  float* scratch = memory + round_up(block.shared_floats(), 16);
  parallel(s.batch, threads, [&](long b, int thread) {
    block.forward(h + b * sequence, out + b * sequence, mixed + b * sequence, scratch + thread * each);
  });
  free(memory);
  return 1;
}

// dh [B,N,D] and the gradients of the parameters, one after the other; false: no memory.
ICRL_EXPORT int practical_block_backward(const icrl::Sizes* sizes, const float* const* parameters, float epsilon,
                                    float scale, const float* h, const float* mixed, const float* dout, float* dh,
                                    float* gradients, int threads) {
  using namespace icrl;
  Block block = made(sizes, parameters, epsilon, scale);
  const Sizes& s = block.s;
  const long groups = least(kGroups, s.batch), count = parameter_count(s), each_count = round_up(count, 16);
  threads = threads_for(groups, threads);
  const long sequence = s.tokens * s.width, each = round_up(block.backward_floats(), 16);
  const long shared = round_up(block.shared_floats(), 16);
  float* memory = static_cast<float*>(aligned_alloc(64, 4 * (shared + threads * each + groups * each_count)));
  if (!memory) return 0;
  block.prepare(memory);
  float *scratch = memory + shared, *sums = scratch + threads * each;
  parallel(groups, threads, [&](long g, int thread) {
    float* own = sums + g * each_count;
    memset(own, 0, 4 * count);
    const Parameters<float> grad = laid_out(s, own);
    for (long b = g * s.batch / groups; b < (g + 1) * s.batch / groups; ++b)
      block.backward(h + b * sequence, mixed + b * sequence, dout + b * sequence, dh + b * sequence, grad,
                     scratch + thread * each);
  });
  for (long i = 0; i < count; ++i) {
    float sum = 0;
    for (long g = 0; g < groups; ++g) sum += sums[g * each_count + i];
    gradients[i] = sum;
  }
  free(memory);
  return 1;
}

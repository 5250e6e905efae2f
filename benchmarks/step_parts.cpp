// The attention and the products of the fused block's forward and backward pass, alone: what a step would take if there
// were nothing else in it. The same calls on operands of the same sizes, one sequence after another.
#include <time.h>

#include "block.cpp"

namespace {

using namespace icrl;

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

struct Buffers {
  float *qkv, *dqkv, *mixed, *dmixed, *scratch;
};

void attention(const Block& block, const Buffers& to) {
  const long d = block.s.width;
  for (long m = 0; m < block.s.heads; ++m) {
    const long at = m * block.dim();
    float* dq = to.dqkv + at;
    attend(block.pair(to.qkv, m), to.mixed + at, d, to.scratch);
    attend_backward(block.pair(to.qkv, m), to.dmixed + at, d, {dq, dq + d, dq + 2 * d, 3 * d, 3 * d, 3 * d}, to.scratch);
  }
}

// y [n, out] = x W^T, its dx = dy W and dW += dy^T x; the first twice where the backward pass makes it again.
void linear(long n, long in, long out, int times, const float* w, const float* w_T, float* x, float* y, float* dw) {
  for (int i = 0; i < times; ++i) product(n, in, out, Left{x, in, 1}, w_T, out, y, out, Put{});
  product(n, out, in, Left{y, out, 1}, w, in, x, in, Put{});
  product(out, n, in, Left{y, 1, out}, x, in, dw, in, Add{});
}

void products(const Block& block, const Buffers& to, const Parameters<float>& grad) {
  const long d = block.s.width, inner = block.s.inner;
  for (long t = 0; t < block.s.tokens; t += kRows) {
    const long n = least(kRows, block.s.tokens - t);
    float *x = to.mixed + t * d, *hidden = to.scratch;
    linear(n, d, 3 * d, 2, block.p.w_qkv, block.qkv_T, x, to.qkv + t * 3 * d, grad.w_qkv);
    linear(n, d, d, 2, block.p.w_o, block.o_T, x, to.dmixed + t * d, grad.w_o);
    linear(n, d, inner, 2, block.p.w_1, block.w_1_T, x, hidden, grad.w_1);
    linear(n, inner, d, 1, block.p.w_2, block.w_2_T, hidden, x, grad.w_2);
  }
}

}  // namespace

// CPU seconds of all sequences' attention and of their products, in this order; false: no memory.
ICRL_EXPORT int step_parts(const Sizes* sizes, const float* const* parameters, double* seconds) {
  Block block = made(sizes, parameters, 1e-5f, 1.f);
  const Sizes& s = block.s;
  const long size = s.tokens * s.width, shared = block.shared_floats(), count = parameter_count(s);
  const long scratch = most(block.attention_floats(), kRows * s.inner);
  float* memory = static_cast<float*>(calloc(size_t(shared + 8 * size + scratch + count), sizeof(float)));
  if (!memory) return 0;
  block.prepare(memory);
  float* qkv = memory + shared;
  const Buffers to = {qkv, qkv + 3 * size, qkv + 6 * size, qkv + 7 * size, qkv + 8 * size};
  const Parameters<float> grad = laid_out(s, to.scratch + scratch);
  double start = cpu_seconds();
  for (long b = 0; b < s.batch; ++b) attention(block, to);
  seconds[0] = cpu_seconds() - start;
  start = cpu_seconds();
  for (long b = 0; b < s.batch; ++b) products(block, to, grad);
  seconds[1] = cpu_seconds() - start;
  free(memory);
  return 1;
}

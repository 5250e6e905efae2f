// LayerNorm of rows, forward and backward. Sums run in one fixed order, whatever the instruction set's width.
#pragma once

#include "vector.h"

namespace icrl {

using Eight = Vector<float, 8>;

ICRL_INLINE float total(Eight x) {
  const Vector<float, 4> low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]};
  const Vector<float, 4> four = low + high;
  return (four[0] + four[2]) + (four[1] + four[3]);
}

struct Moments {
  float mean, inverse_std;
};

ICRL_INLINE Moments moments(const float* x, long width, float epsilon) {
  Eight sum = {};
  for (long j = 0; j < width; j += 8) sum += load<Eight>(x + j);
  const float mean = total(sum) / float(width);
  Eight squares = {};
  for (long j = 0; j < width; j += 8) {
    const Eight centred = load<Eight>(x + j) - mean;
    squares += centred * centred;
  }
  return {mean, 1.f / __builtin_sqrtf(total(squares) / float(width) + epsilon)};
}

struct Norm {
  const float *gain, *bias;
  long width;
  float epsilon;

  // y = gain * (x - mean) / std + bias
  ICRL_INLINE void forward(long rows, const float* x, float* y) const {
    for (long i = 0; i < rows; ++i, x += width, y += width) {
      const Moments of = moments(x, width, epsilon);
      for (long j = 0; j < width; j += 8) {
        const Eight unit = (load<Eight>(x + j) - of.mean) * of.inverse_std;
        store(y + j, unit * load<Eight>(gain + j) + load<Eight>(bias + j));
      }
    }
  }

  // dx = base + the gradient of x under dy; adds to the gradients of gain and bias. dx may be base.
  ICRL_INLINE void backward(long rows, const float* x, const float* dy, const float* base, float* dx, float* d_gain,
                            float* d_bias) const {
    for (long i = 0; i < rows; ++i, x += width, dy += width, base += width, dx += width) {
      const Moments of = moments(x, width, epsilon);
      Eight sum = {}, sum_unit = {};
      for (long j = 0; j < width; j += 8) {
        const Eight unit = (load<Eight>(x + j) - of.mean) * of.inverse_std, incoming = load<Eight>(dy + j);
        const Eight scaled = incoming * load<Eight>(gain + j);
        sum += scaled;
        sum_unit += scaled * unit;
        store(d_gain + j, load<Eight>(d_gain + j) + incoming * unit);
        store(d_bias + j, load<Eight>(d_bias + j) + incoming);
      }
      const float mean = total(sum) / float(width), mean_unit = total(sum_unit) / float(width);
      for (long j = 0; j < width; j += 8) {
        const Eight unit = (load<Eight>(x + j) - of.mean) * of.inverse_std;
        const Eight scaled = load<Eight>(dy + j) * load<Eight>(gain + j);
        store(dx + j, load<Eight>(base + j) + (scaled - mean - unit * mean_unit) * of.inverse_std);
      }
    }
  }
};

}  // namespace icrl

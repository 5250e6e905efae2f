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

constexpr long kRows = 64;  // tokens that pass through the token-wise parts together

// Of at most kRows rows; made by the forward pass of a norm, read by its backward pass.
struct Moments {
  float mean[kRows], inverse_std[kRows];
};

// Each loop below takes all rows before the next begins: rows do not wait for each other's divisions and sums.
struct Norm {
  const float *gain, *bias;
  long width;
  float epsilon;

  // y = gain * (x - mean) / std + bias
  void forward(long rows, const float* x, float* y, Moments& of) const {
    for (long i = 0; i < rows; ++i) {
      Eight sum = {};
      for (long j = 0; j < width; j += 8) sum += load<Eight>(x + i * width + j);
      of.mean[i] = total(sum) / float(width);
    }
    for (long i = 0; i < rows; ++i) {
      Eight squares = {};
      for (long j = 0; j < width; j += 8) {
        const Eight centred = load<Eight>(x + i * width + j) - of.mean[i];
        squares += centred * centred;
      }
      of.inverse_std[i] = total(squares) / float(width) + epsilon;
    }
    for (long i = 0; i < rows; ++i) of.inverse_std[i] = 1.f / __builtin_sqrtf(of.inverse_std[i]);
    for (long j = 0; j < width; j += 8) {
      const Eight times = load<Eight>(gain + j), plus = load<Eight>(bias + j);
      for (long i = 0; i < rows; ++i) store(y + i * width + j, unit(x, of, i, j) * times + plus);
    }
  }

  // dx = base + the gradient of x under dy; adds to the gradients of gain and bias. dx may be base.
  void backward(long rows, const float* x, const Moments& of, const float* dy, const float* base, float* dx,
                float* d_gain, float* d_bias) const {
    float mean[kRows], mean_unit[kRows];  // of gain * dy, and of that times the unit rows
    for (long i = 0; i < rows; ++i) {
      Eight sum = {}, sum_unit = {};
      for (long j = 0; j < width; j += 8) {
        const Eight scaled = load<Eight>(dy + i * width + j) * load<Eight>(gain + j);
        sum += scaled;
        sum_unit += scaled * unit(x, of, i, j);
      }
      mean[i] = total(sum) / float(width), mean_unit[i] = total(sum_unit) / float(width);
    }
    for (long j = 0; j < width; j += 8) {
      const Eight times = load<Eight>(gain + j);
      Eight to_gain = load<Eight>(d_gain + j), to_bias = load<Eight>(d_bias + j);
      for (long i = 0; i < rows; ++i) {
        const Eight incoming = load<Eight>(dy + i * width + j), row = unit(x, of, i, j);
        to_gain += incoming * row;
        to_bias += incoming;
        const Eight slope = (incoming * times - mean[i] - row * mean_unit[i]) * of.inverse_std[i];
        store(dx + i * width + j, load<Eight>(base + i * width + j) + slope);
      }
      store(d_gain + j, to_gain);
      store(d_bias + j, to_bias);
    }
  }

 private:
  ICRL_INLINE Eight unit(const float* x, const Moments& of, long i, long j) const {
    return (load<Eight>(x + i * width + j) - of.mean[i]) * of.inverse_std[i];
  }
};

// sums [width] += the rows of x, four at a time.
inline void add_rows(long rows, long width, const float* x, float* sums) {
  for (long j = 0; j < width; j += 8) {
    Eight part[4] = {};
    long i = 0;
    for (; i + 4 <= rows; i += 4)
      for (int r = 0; r < 4; ++r) part[r] += load<Eight>(x + (i + r) * width + j);
    for (; i < rows; ++i) part[0] += load<Eight>(x + i * width + j);
    store(sums + j, load<Eight>(sums + j) + ((part[0] + part[1]) + (part[2] + part[3])));
  }
}

}  // namespace icrl

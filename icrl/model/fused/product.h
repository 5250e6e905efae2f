// Products of small matrices whose operands lie in cache: C = A B, the accumulators in registers, what follows the
// product (a bias, ReLU, its gate) done before the store. A is read by broadcasts, so any strides do; B and C by rows.
#pragma once

#include "vector.h"

namespace icrl {

// Element (i, k) of A is at data[i * row + k * step].
struct Left {
  const float* data;
  long row, step;
  Left at(long i) const { return {data + i * row, row, step}; }
};

// What becomes of a vector of sums at C[i][j]. relu is a selection that keeps NaN.
struct Put {
  template <class V>
  ICRL_INLINE V operator()(V sum, const float*, long, long) const {
    return sum;
  }
};
struct Add {
  template <class V>
  ICRL_INLINE V operator()(V sum, const float* old, long, long) const {
    return load<V>(old) + sum;
  }
};
struct Bias {
  const float* bias;
  template <class V>
  ICRL_INLINE V operator()(V sum, const float*, long, long j) const {
    return sum + load<V>(bias + j);
  }
};
struct BiasRelu {
  const float* bias;
  template <class V>
  ICRL_INLINE V operator()(V sum, const float*, long, long j) const {
    sum += load<V>(bias + j);
    return sum < 0.f ? V{} : sum;
  }
};
struct BiasResidual {
  const float *bias, *residual;
  long row;
  template <class V>
  ICRL_INLINE V operator()(V sum, const float*, long i, long j) const {
    return load<V>(residual + i * row + j) + (sum + load<V>(bias + j));
  }
};
// The derivative of relu: 0 where its output was 0.
struct Gate {
  const float* output;
  long row;
  template <class V>
  ICRL_INLINE V operator()(V sum, const float*, long i, long j) const {
    return load<V>(output + i * row + j) <= 0.f ? V{} : sum;
  }
};

// R x (C vectors) of C = A B, from row i0 and column j0.
template <class V, int R, int C, class Then>
ICRL_INLINE void tile(long depth, Left a, const float* b, long b_row, float* c, long c_row, long i0, long j0,
                      const Then& then) {
  constexpr long kLanes = sizeof(V) / sizeof(float);
  V sum[R][C] = {};
  for (long k = 0; k < depth; ++k) {
    V right[C];
#pragma GCC unroll 8
    for (int x = 0; x < C; ++x) right[x] = load<V>(b + k * b_row + x * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int x = 0; x < C; ++x) sum[r][x] += right[x] * a.data[r * a.row + k * a.step];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int x = 0; x < C; ++x) {
      float* to = c + r * c_row + x * kLanes;
      store(to, then(sum[r][x], to, i0 + r, j0 + x * kLanes));
    }
}

template <class V, int C, class Then>
ICRL_INLINE void panel(long rows, long depth, Left a, const float* b, long b_row, float* c, long c_row, long j0,
                       const Then& then) {
  constexpr int kRows = kRegisters == 32 ? 8 : 4;
  long i = 0;
  for (; i + kRows <= rows; i += kRows)
    tile<V, kRows, C>(depth, a.at(i), b, b_row, c + i * c_row, c_row, i, j0, then);
  for (; i < rows; ++i) tile<V, 1, C>(depth, a.at(i), b, b_row, c + i * c_row, c_row, i, j0, then);
}

// C [rows, cols] = then(A [rows, depth] B [depth, cols]); cols is a multiple of 8. Not inlined: it is compiled once for
// each `then`, not once for each call.
template <class Then>
__attribute__((noinline)) void product(long rows, long depth, long cols, Left a, const float* b, long b_row, float* c,
                                       long c_row, const Then& then) {
  constexpr long kWide = kWidth<float>;
  using Wide = Vector<float, kWide>;
  long j = 0;
  for (; j + 2 * kWide <= cols; j += 2 * kWide) panel<Wide, 2>(rows, depth, a, b + j, b_row, c + j, c_row, j, then);
  for (; j + kWide <= cols; j += kWide) panel<Wide, 1>(rows, depth, a, b + j, b_row, c + j, c_row, j, then);
  if constexpr (kWide > 8)
    for (; j < cols; j += 8) panel<Vector<float, 8>, 1>(rows, depth, a, b + j, b_row, c + j, c_row, j, then);
}

}  // namespace icrl

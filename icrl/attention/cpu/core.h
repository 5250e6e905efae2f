// Causal ReLU attention of one (batch, head) pair, forward and backward:
//
//   out_i = factor_i * sum_{j seen by i} relu(<q_i, k_j>) v_j
//
// on rows of floats in cache. Scores live in a tile of a few rows by kTileKeys keys; nothing of size N x T exists. Each
// product reads exactly the pairs that are seen: no mask is multiplied, so nothing of an unseen key, NaN or infinity
// included, reaches a row. relu keeps NaN. The order of every sum is fixed.
//
// Letters: N queries, T keys, D width of q and k, E width of v; D and E are multiples of kGrain (pad with zeros).
#pragma once

#include "vector.h"

namespace icrl {

constexpr int kGrain = 8;      // columns come in multiples of this
constexpr int kBlock = 8;      // rows of scores (or keys of their transpose) that are in registers at once
constexpr int kTileKeys = 64;  // keys of a tile of scores
constexpr int kTileRows = 64;  // rows of a tile in the backward pass

template <class T>
constexpr int kPanel = 2 * kWidth<T>;  // keys of a panel of transposed keys

ICRL_INLINE long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }
ICRL_INLINE long least(long a, long b) { return a < b ? a : b; }
ICRL_INLINE long most(long a, long b) { return a > b ? a : b; }

// The keys that row i sees: first(i) <= j < end(i); both ascend with i.
struct Sight {
  long queries, keys;
  long offset;  // row i stands at position i + offset
  long window;  // keys a row sees at most; 0 for no bound
  bool causal;

  ICRL_INLINE long first(long i) const { return window ? least(most(0, i + offset - window + 1), keys) : 0; }
  ICRL_INLINE long end(long i) const {
    return causal ? most(first(i), least(keys, i + offset + 1)) : keys;
  }
  // and the other way round: the rows that see key j
  ICRL_INLINE long first_row(long j) const { return causal ? least(queries, most(0, j - offset)) : 0; }
  ICRL_INLINE long end_row(long j) const {
    return window ? most(first_row(j), least(queries, j + window - offset)) : queries;
  }
};

// What one pair reads: rows of floats, `*_stride` apart.
template <class T>
struct Pair {
  Sight sight;
  int d, e;
  const T *q, *k, *v;
  long q_stride, k_stride, v_stride;
  const T* factor;  // [N]
};

// The ranges [from, to) of a sum for each of kBlock rows, and the part all of them share.
struct Spans {
  long from[kBlock], to[kBlock], shared_from, shared_to;

  // range(m) gives row m's; rows past `live` repeat the last one, and their results are dropped
  template <class Range>
  ICRL_INLINE Spans(int live, long low, long high, const Range& range) {
    shared_from = low, shared_to = high;
    for (int m = 0; m < kBlock; ++m) {
      long a, b;
      range(m < live ? m : live - 1, a, b);
      from[m] = most(a, low), to[m] = most(from[m], least(b, high));
      shared_from = most(shared_from, from[m]), shared_to = least(shared_to, to[m]);
    }
    if (shared_to <= shared_from) shared_from = shared_to = high;
  }
};

// c[m] (+)= sum_k a[m AM + k AK] b[k], m < kBlock, over each row's span, for NV vectors of columns.
template <int AM, int AK, int NV, class V, class T>
ICRL_INLINE void add_columns(const T* a, const T* b, long b_stride, const Spans& spans, T* c, long c_stride, int live,
                             bool fresh) {
  constexpr int kN = int(sizeof(V) / sizeof(T));
  constexpr int kM = NV == 1 || kRegisters == 32 ? kBlock : kBlock / 2;
  for (int part = 0; part < kBlock; part += kM, a += kM * AM, c += kM * c_stride) {
    V sum[kM][NV];
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) sum[m][n] = fresh || part + m >= live ? V{} : load<V>(c + m * c_stride + n * kN);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m)
      for (long k = spans.from[part + m]; k < least(spans.shared_from, spans.to[part + m]); ++k)
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] += a[m * AM + k * AK] * load<V>(b + k * b_stride + n * kN);
    for (long k = spans.shared_from; k < spans.shared_to; ++k) {
      V row[NV];
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) row[n] = load<V>(b + k * b_stride + n * kN);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] += a[m * AM + k * AK] * row[n];
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m)
      for (long k = most(spans.shared_to, spans.from[part + m]); k < spans.to[part + m]; ++k)
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] += a[m * AM + k * AK] * load<V>(b + k * b_stride + n * kN);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m)
      if (part + m < live)
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) store(c + m * c_stride + n * kN, sum[m][n]);
  }
}

// The same for all columns.
template <int AM, int AK, class T>
inline void add_product(const T* a, const T* b, long b_stride, const Spans& spans, T* c, long c_stride, int columns,
                        int live, bool fresh) {
  constexpr int kN = kWidth<T>;
  int at = 0;
  for (; at + 2 * kN <= columns; at += 2 * kN)
    add_columns<AM, AK, 2, Vector<T, kN>>(a, b + at, b_stride, spans, c + at, c_stride, live, fresh);
  for (; at + kN <= columns; at += kN)
    add_columns<AM, AK, 1, Vector<T, kN>>(a, b + at, b_stride, spans, c + at, c_stride, live, fresh);
  if constexpr (kN > kGrain)
    if (at < columns)
      add_columns<AM, AK, 1, Vector<T, kGrain>>(a, b + at, b_stride, spans, c + at, c_stride, live, fresh);
}

// Transposed keys (or values) in panels: [T / kPanel][width][kPanel], zeros past the last key.
template <class T>
inline void transpose(const T* rows, long stride, long n, int width, T* panels) {
  constexpr int kN = kPanel<T>;
  for (long first = 0; first < n; first += kN, panels += long(width) * kN)
    for (int c = 0; c < width; ++c)
      for (int j = 0; j < kN; ++j) panels[c * kN + j] = first + j < n ? rows[(first + j) * stride + c] : T(0);
}

template <class T>
ICRL_INLINE long panels_size(long keys, int width) {
  return round_up(keys, kPanel<T>) * width;
}

// Scores of kBlock rows with NV vectors of keys: relu(a b) to `out`, or, gated, the product where `weights` is not 0.
template <int NV, bool Gated, class T>
ICRL_INLINE void score_block(const T* a, long a_stride, const T* panel, int width, const T* weights, T* out) {
  constexpr int kN = kWidth<T>, kM = kRegisters == 32 ? kBlock : kBlock / 2;
  using V = Vector<T, kN>;
  for (int part = 0; part < kBlock; part += kM, a += kM * a_stride, out += kM * kTileKeys, weights += kM * kTileKeys) {
    V sum[kM][NV] = {};
    for (int c = 0; c < width; ++c) {
      V row[NV];
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) row[n] = load<V>(panel + c * kPanel<T> + n * kN);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] += a[m * a_stride + c] * row[n];
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) {
        const long at = m * kTileKeys + n * kN;
        // NaN fails both comparisons and stays
        if constexpr (Gated)
          store(out + at, load<V>(weights + at) == V{} ? V{} : sum[m][n]);
        else
          store(out + at, sum[m][n] < V{} ? V{} : sum[m][n]);
      }
  }
}

// Those of kBlock rows with the keys [from, to) of a tile that begins at key `tile`, both multiples of a panel.
template <bool Gated, class T>
inline void score_rows(const T* a, long a_stride, const T* panels, int width, long tile, long from, long to,
                       const T* weights, T* out) {
  constexpr int kN = kWidth<T>;
  for (long j = from; j < to; j += 2 * kN) {
    const T* panel = panels + j * width;
    if (to - j > kN)
      score_block<2, Gated>(a, a_stride, panel, width, weights + (j - tile), out + (j - tile));
    else
      score_block<1, Gated>(a, a_stride, panel, width, weights + (j - tile), out + (j - tile));
  }
}

// `live` rows times their factor (where there is one), `rows` in all, the others zero.
template <class T>
inline void copy_rows(const T* from, long stride, int width, int live, int rows, const T* factor, T* to) {
  for (int m = 0; m < rows; ++m, to += width)
    for (int c = 0; c < width; ++c) to[c] = m < live ? (factor ? factor[m] : T(1)) * from[m * stride + c] : T(0);
}

// Elements of scratch that `attend` needs, of any alignment (a cache line's is fastest).
template <class T>
inline long attend_scratch(long keys, int d) {
  return panels_size<T>(keys, d) + kBlock * (kTileKeys + d);
}

// The same for `attend_backward`.
template <class T>
inline long backward_scratch(long keys, int d, int e) {
  return panels_size<T>(keys, d) + panels_size<T>(keys, e) + kTileRows * (2 * kTileKeys + d + e);
}

// out [N][E], `out_stride` apart, is overwritten.
template <class T>
inline void attend(const Pair<T>& pair, T* out, long out_stride, T* scratch) {
  const Sight& sight = pair.sight;
  T* panels = scratch;
  T* weights = panels + panels_size<T>(sight.keys, pair.d);
  T* q = weights + kBlock * kTileKeys;
  transpose(pair.k, pair.k_stride, sight.keys, pair.d, panels);
  for (long i = 0; i < sight.queries; i += kBlock, out += kBlock * out_stride) {
    const int live = int(least(kBlock, sight.queries - i));
    copy_rows(pair.q + i * pair.q_stride, pair.q_stride, pair.d, live, kBlock, static_cast<const T*>(nullptr), q);
    const long first = sight.first(i) / kPanel<T> * kPanel<T>, end = sight.end(i + live - 1);
    bool fresh = true;
    for (long tile = first; fresh || tile < end; tile += kTileKeys, fresh = false) {
      const long stop = least(end, tile + kTileKeys);
      score_rows<false>(q, pair.d, panels, pair.d, tile, tile, stop, weights, weights);
      const Spans spans(live, tile, most(tile, stop), [&](int m, long& a, long& b) {
        a = sight.first(i + m), b = sight.end(i + m);
      });
      add_product<kTileKeys, 1>(weights - tile, pair.v, pair.v_stride, spans, out, out_stride, pair.e, live, fresh);
    }
    for (int m = 0; m < live; ++m)
      for (int c = 0; c < pair.e; ++c) out[m * out_stride + c] *= pair.factor[i + m];
  }
}

// Where the gradients go; all are added to what is there.
template <class T>
struct Gradients {
  T *dq, *dk, *dv;
  long dq_stride, dk_stride, dv_stride;
};

// grad [N][E] is the gradient of out; the factor is applied here.
template <class T>
inline void attend_backward(const Pair<T>& pair, const T* grad, long grad_stride, const Gradients<T>& to, T* scratch) {
  const Sight& sight = pair.sight;
  const int d = pair.d, e = pair.e;
  T* k_panels = scratch;
  T* v_panels = k_panels + panels_size<T>(sight.keys, d);
  T* weights = v_panels + panels_size<T>(sight.keys, e);
  T* gate = weights + kTileRows * kTileKeys;
  T* q = gate + kTileRows * kTileKeys;
  T* g = q + kTileRows * d;
  transpose(pair.k, pair.k_stride, sight.keys, d, k_panels);
  transpose(pair.v, pair.v_stride, sight.keys, e, v_panels);
  for (long i = 0; i < sight.queries; i += kTileRows) {
    const int rows = int(least(kTileRows, sight.queries - i));
    copy_rows(pair.q + i * pair.q_stride, pair.q_stride, d, rows, kTileRows, static_cast<const T*>(nullptr), q);
    copy_rows(grad + i * grad_stride, grad_stride, e, rows, kTileRows, pair.factor + i, g);
    const long first = sight.first(i) / kPanel<T> * kPanel<T>, end = sight.end(i + rows - 1);
    for (long tile = first; tile < end; tile += kTileKeys) {
      for (int r = 0; r < rows; r += kBlock) {
        const int live = int(least(kBlock, rows - r));
        const long from = most(tile, sight.first(i + r) / kPanel<T> * kPanel<T>);
        const long stop = least(tile + kTileKeys, sight.end(i + r + live - 1));
        if (stop <= from) continue;
        T *p = weights + r * kTileKeys, *s = gate + r * kTileKeys;
        score_rows<false>(q + r * d, d, k_panels, d, tile, from, stop, p, p);
        score_rows<true>(g + r * e, e, v_panels, e, tile, from, stop, p, s);
        const Spans spans(live, from, stop, [&](int m, long& a, long& b) {
          a = sight.first(i + r + m), b = sight.end(i + r + m);
        });
        T* dq = to.dq + (i + r) * to.dq_stride;
        add_product<kTileKeys, 1>(s - tile, pair.k, pair.k_stride, spans, dq, to.dq_stride, d, live, false);
      }
      const long stop = least(tile + kTileKeys, end);
      for (long j = tile; j < stop; j += kBlock) {
        const int live = int(least(kBlock, stop - j));
        const Spans spans(live, 0, rows, [&](int m, long& a, long& b) {
          a = sight.first_row(j + m) - i, b = sight.end_row(j + m) - i;
        });
        T *dk = to.dk + j * to.dk_stride, *dv = to.dv + j * to.dv_stride;
        add_product<1, kTileKeys>(gate + (j - tile), q, d, spans, dk, to.dk_stride, d, live, false);
        add_product<1, kTileKeys>(weights + (j - tile), g, e, spans, dv, to.dv_stride, e, live, false);
      }
    }
  }
}

}  // namespace icrl

// The C ABI of core.h: tensors of any strides, four element types, work divided over (batch, head) pairs.
#include <stdlib.h>

#include "core.h"
#include "threads.h"

using namespace icrl;

namespace {

struct Tensor {  // [B, heads, rows, columns]; strides in elements
  int64_t data, stride[4];
};

enum Type : int64_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Filled by __init__.py, field by field.
struct Problem {
  int64_t type, threads;
  int64_t batch, heads, groups, queries, keys, d, e;
  int64_t causal, offset, window;         // window 0: none
  int64_t documents, n_documents;         // int32 cu_seqlens [n_documents + 1] of batch 1, or 0
  int64_t factor;                         // [N] of the type sums are made in
  Tensor q, k, v;
};

template <class Element>
ICRL_INLINE Element* at(const Tensor& tensor, long b, long h, long row) {
  return reinterpret_cast<Element*>(tensor.data) + b * tensor.stride[0] + h * tensor.stride[1] + row * tensor.stride[2];
}

// Columns in whole grains: a loop of known length becomes vector instructions, without a call for 32 bytes.
template <class From, class To>
ICRL_INLINE void convert(const From* from, int columns, To* to) {
  for (int c = 0; c < columns; c += kGrain)
    for (int n = 0; n < kGrain; ++n) {
      if constexpr (sizeof(From) < sizeof(To))
        to[c + n] = widen(from[c + n]);
      else
        to[c + n] = narrow<To>(from[c + n]);
    }
}

// Rows of floats, columns padded to a multiple of kGrain: the tensor's own memory where it is that, else a copy.
// Rows that are read again and again are copied too unless they touch: strided ones share few sets of a cache.
template <class Element, class T>
const T* rows_of(const Tensor& tensor, long b, long h, long first, long rows, int columns, bool again, T* copy,
                 long& stride) {
  const Element* from = at<Element>(tensor, b, h, first);
  const long row_stride = tensor.stride[2], step = tensor.stride[3];
  if constexpr (sizeof(Element) == sizeof(T))
    if (step == 1 && columns % kGrain == 0 && (row_stride == columns || !again)) {
      stride = row_stride;
      return reinterpret_cast<const T*>(from);
    }
  stride = round_up(columns, kGrain);
  for (long r = 0; r < rows; ++r) {
    const Element* row = from + r * row_stride;
    T* to = copy + r * stride;
    if (step == 1 && columns % kGrain == 0)
      convert(row, columns, to);
    else if (step == 1)
      for (int c = 0; c < columns; ++c) to[c] = widen(row[c]);
    else
      for (int c = 0; c < columns; ++c) to[c] = widen(row[c * step]);
    for (int c = columns; c < stride; ++c) to[c] = T(0);
  }
  return copy;
}

template <class Element, class T>
void write_rows(const T* from, long rows, int columns, const Tensor& tensor, long b, long h, long first) {
  Element* to = at<Element>(tensor, b, h, first);
  const long stride = round_up(columns, kGrain), row_stride = tensor.stride[2], step = tensor.stride[3];
  for (long r = 0; r < rows; ++r) {
    const T* row = from + r * stride;
    if (step == 1 && columns % kGrain == 0)
      convert(row, columns, to + r * row_stride);
    else if (step == 1)
      for (int c = 0; c < columns; ++c) to[r * row_stride + c] = narrow<Element>(row[c]);
    else
      for (int c = 0; c < columns; ++c) to[r * row_stride + c * step] = narrow<Element>(row[c]);
  }
}

// One sequence: a batch entry, or a document.
struct Sequence {
  long b, first, queries, keys;
};

Sequence sequence_of(const Problem& problem, long index) {
  if (problem.documents == 0) return {index, 0, problem.queries, problem.keys};
  const int32_t* bounds = reinterpret_cast<const int32_t*>(problem.documents) + index;
  const long length = bounds[1] - bounds[0];
  return {0, bounds[0], length, length};
}

long sequences(const Problem& problem) { return problem.documents ? problem.n_documents : problem.batch; }

// The longest sequence; -1 where documents do not ascend from 0 to N.
long longest_of(const Problem& problem, long whole) {
  if (problem.documents == 0) return whole;
  const int32_t* bounds = reinterpret_cast<const int32_t*>(problem.documents);
  long longest = 0;
  for (long i = 0; i < problem.n_documents; ++i) {
    if (bounds[i + 1] < bounds[i]) return -1;
    longest = most(longest, bounds[i + 1] - bounds[i]);
  }
  return bounds[0] == 0 && bounds[problem.n_documents] == whole ? longest : -1;
}

template <class T>
struct Sizes {
  long queries, keys, d, e, q, k, v, out, attend, backward;
  explicit Sizes(const Problem& problem)
      : queries(longest_of(problem, problem.queries)), keys(longest_of(problem, problem.keys)),
        d(round_up(problem.d, kGrain)), e(round_up(problem.e, kGrain)), q(queries * d), k(keys * d), v(keys * e),
        out(queries * e), attend(attend_scratch<T>(keys, int(d))),
        backward(backward_scratch<T>(keys, int(d), int(e))) {}
};

template <class Element, class T>
Pair<T> read_pair(const Problem& problem, const Sizes<T>& sizes, const Sequence& sequence, long head, T*& scratch) {
  const long group = head / (problem.heads / problem.groups);
  Pair<T> pair;
  pair.sight = {sequence.queries, sequence.keys, problem.offset, problem.window, problem.causal != 0};
  pair.d = int(sizes.d), pair.e = int(sizes.e);
  const long b = sequence.b, first = sequence.first;
  pair.q = rows_of<Element>(problem.q, b, head, first, sequence.queries, int(problem.d), false, scratch, pair.q_stride);
  scratch += sizes.q;
  pair.k = rows_of<Element>(problem.k, b, group, first, sequence.keys, int(problem.d), true, scratch, pair.k_stride);
  scratch += sizes.k;
  pair.v = rows_of<Element>(problem.v, b, group, first, sequence.keys, int(problem.e), true, scratch, pair.v_stride);
  scratch += sizes.v;
  // positions start anew in a document, and so does the count of keys that factor holds
  pair.factor = reinterpret_cast<const T*>(problem.factor) + first;
  return pair;
}

// Scratch of each thread, a cache line apart.
template <class T>
struct Scratch {
  long each;
  T* all;
  Scratch(long elements, int threads) : each(round_up(elements, 64)) {
    void* memory = nullptr;
    all = posix_memalign(&memory, 64, sizeof(T) * each * threads) ? nullptr : static_cast<T*>(memory);
  }
  ~Scratch() { free(all); }
  T* of(int thread) const { return all + each * thread; }
};

template <class Element, class T>
int forward(const Problem& problem, const Tensor& out) {
  const Sizes<T> sizes(problem);
  if (sizes.queries < 0) return 2;
  const long items = sequences(problem) * problem.heads;
  const int threads = threads_for(items, int(problem.threads));
  const Scratch<T> scratch(sizes.q + sizes.k + sizes.v + sizes.out + sizes.attend, threads);
  if (!scratch.all) return 1;
  parallel(items, threads, [&](long item, int thread) {
    const Sequence sequence = sequence_of(problem, item / problem.heads);
    const long head = item % problem.heads;
    T* rest = scratch.of(thread);
    const Pair<T> pair = read_pair<Element>(problem, sizes, sequence, head, rest);
    if constexpr (sizeof(Element) == sizeof(T))
      if (problem.e % kGrain == 0 && out.stride[3] == 1) {
        T* rows = reinterpret_cast<T*>(at<Element>(out, sequence.b, head, sequence.first));
        attend(pair, rows, long(out.stride[2]), rest);
        return;
      }
    attend(pair, rest, sizes.e, rest + sizes.out);
    write_rows<Element>(rest, sequence.queries, int(problem.e), out, sequence.b, head, sequence.first);
  });
  return 0;
}

struct GradientTensors {
  Tensor grad, dq, dk, dv;
};

template <class Element, class T>
int backward(const Problem& problem, const GradientTensors& tensors) {
  const Sizes<T> sizes(problem);
  if (sizes.queries < 0) return 2;
  const long items = sequences(problem) * problem.groups, shared = problem.heads / problem.groups;
  const int threads = threads_for(items, int(problem.threads));
  const Scratch<T> scratch(2 * (sizes.q + sizes.k + sizes.v) + sizes.out + sizes.backward, threads);
  if (!scratch.all) return 1;
  parallel(items, threads, [&](long item, int thread) {
    const Sequence sequence = sequence_of(problem, item / problem.groups);
    const long group = item % problem.groups, b = sequence.b, first = sequence.first;
    T* const start = scratch.of(thread);
    T *dk = start, *dv = dk + sizes.k, *dq = dv + sizes.v;
    memset(dk, 0, sizeof(T) * (sizes.k + sizes.v));
    for (long head = group * shared; head < (group + 1) * shared; ++head) {
      T* rest = dq + sizes.q;
      memset(dq, 0, sizeof(T) * sizes.q);
      const Pair<T> pair = read_pair<Element>(problem, sizes, sequence, head, rest);
      long grad_stride;
      const T* grad = rows_of<Element>(tensors.grad, b, head, first, sequence.queries, int(problem.e), false, rest,
                                       grad_stride);
      attend_backward(pair, grad, grad_stride, Gradients<T>{dq, dk, dv, sizes.d, sizes.d, sizes.e}, rest + sizes.out);
      write_rows<Element>(dq, sequence.queries, int(problem.d), tensors.dq, b, head, first);
    }
    write_rows<Element>(dk, sequence.keys, int(problem.d), tensors.dk, b, group, first);
    write_rows<Element>(dv, sequence.keys, int(problem.e), tensors.dv, b, group, first);
  });
  return 0;
}

}  // namespace

// 0; 1 when there is no memory for the scratch; 2 when the documents do not ascend from 0 to N.
ICRL_EXPORT int relu_attention_forward(const Problem* problem, const Tensor* out) {
  switch (problem->type) {
    case kFloat32: return forward<float, float>(*problem, *out);
    case kBFloat16: return forward<BFloat16, float>(*problem, *out);
    case kFloat16: return forward<Half, float>(*problem, *out);
    default: return forward<double, double>(*problem, *out);
  }
}

ICRL_EXPORT int relu_attention_backward(const Problem* problem, const GradientTensors* tensors) {
  switch (problem->type) {
    case kFloat32: return backward<float, float>(*problem, *tensors);
    case kBFloat16: return backward<BFloat16, float>(*problem, *tensors);
    case kFloat16: return backward<Half, float>(*problem, *tensors);
    default: return backward<double, double>(*problem, *tensors);
  }
}

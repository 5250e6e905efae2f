// ReLU attention of the newest tokens against a cache, their append included; every environment by itself.
//
//   out_i = scale / seen_i * sum_{j < seen_i} relu(<q_i, k_j>) v_j,   seen_i: tokens up to and with i
//
// What one key head holds is a run of tiles of kLanes tokens, tokens last: [tiles, D + E, kLanes]. So both products go
// along tokens without a shuffle, and a pass over the cache reads one contiguous run. A lane beyond seen_i reaches
// nothing: weights are selected, and a sum keeps its old value there. Sums run over tiles in order and over lanes last: a
// row's bits depend on its own keys alone, not on the other rows of the call, the batch or the threads.

#include <cstdlib>

#include "threads.h"
#include "vector.h"

using namespace icrl;

// q [B,H,N,D], k [B,G,N,D], v [B,G,N,E]: strides in elements. cache [B,G,tiles,D+E,kLanes] and out [B,N,H,E] contiguous.
// held int32 [B]: tokens before the append. padding int32 [B] or null: how many of the new tokens, from the first, are
// none: they are not stored and their rows of out are 0.
struct Problem {
  const void *q, *k, *v;
  void *cache, *out;
  const int32_t *held, *padding;
  int64_t q_strides[4], k_strides[4], v_strides[4];
  int64_t batch, heads, key_heads, tokens, key_width, value_width, tiles;
  double scale;
};

namespace {

constexpr int kLanes = 16;
constexpr int kMostRows = 4;
constexpr int kMostTiles = 16;              // whose weights are held at once: a row of 1 KB
constexpr int64_t kChunkBytes = 32 * 1024;  // of keys and values: the values stay near until they are read
constexpr int64_t kAheadBytes = 32 * 1024;  // how far ahead the cache is asked for: without it half as fast
constexpr int64_t kBlocksPerThread = 4;

template <class Sum>
using Wide = Vector<Sum, kWidth<Sum>>;

template <class Sum>
struct IndexOf {
  typedef int32_t type;
};
template <>
struct IndexOf<double> {
  typedef int64_t type;
};

template <class Sum>
ICRL_INLINE Wide<Sum> widened(const Sum* from) {
  return load<Wide<Sum>>(from);
}
template <class Sum>
ICRL_INLINE Wide<float> widened(const BFloat16* from) {
  const auto bits = load<Vector<uint16_t, kWidth<float>>>(from);
  return (Wide<float>)(__builtin_convertvector(bits, Vector<uint32_t, kWidth<float>>) << 16);
}

// Which lanes of a vector lie below `limit`.
template <class Sum>
ICRL_INLINE auto below(int64_t limit) {
  using Index = typename IndexOf<Sum>::type;
  Vector<Index, kWidth<Sum>> lane;
  for (int i = 0; i < kWidth<Sum>; ++i) lane[i] = i;
  return lane < Index(limit);
}

// relu(<q_r, k_j>) of R rows for the tokens of one tile; with `edge` the lanes from seen[r] on are 0, whatever lies there.
template <class Store, class Sum, int R, bool edge>
ICRL_INLINE void weigh(const Store* tile, const Sum* q, int64_t D, const int64_t* seen, int64_t token, Sum* weights) {
  for (int lane = 0; lane < kLanes; lane += kWidth<Sum>) {
    Wide<Sum> score[R] = {};
    for (int64_t d = 0; d < D; ++d) {
      const Wide<Sum> key = widened<Sum>(tile + d * kLanes + lane);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) score[r] += q[r * D + d] * key;
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Wide<Sum> weight = score[r] < 0 ? Wide<Sum>{} : score[r];  // NaN is not below 0: it stays
      if (edge) weight = below<Sum>(seen[r] - token - lane) ? weight : Wide<Sum>{};
      store(weights + r * kMostTiles * kLanes + lane, weight);
    }
  }
}

// Adds weighted values of some tiles to E sums of R rows; in the last `edges` tiles a row may not see every lane.
template <class Store, class Sum, int R, int E>
__attribute__((noinline)) void add_values(const Store* values, int64_t stride, int tiles, int edges, const Sum* weights,
                                          const int64_t* seen, int64_t token, Sum* sums, int64_t sums_stride) {
  Wide<Sum> sum[R][E];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int e = 0; e < E; ++e) sum[r][e] = widened<Sum>(sums + r * sums_stride + e * kWidth<Sum>);
  for (int c = 0; c < tiles - edges; ++c)
    for (int lane = 0; lane < kLanes; lane += kWidth<Sum>) {
      Wide<Sum> weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) weight[r] = widened<Sum>(weights + (r * kMostTiles + c) * kLanes + lane);
#pragma GCC unroll 16
      for (int e = 0; e < E; ++e) {
        const Wide<Sum> value = widened<Sum>(values + c * stride + e * kLanes + lane);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][e] += weight[r] * value;
      }
    }
  for (int c = tiles - edges; c < tiles; ++c)
    for (int lane = 0; lane < kLanes; lane += kWidth<Sum>)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const auto visible = below<Sum>(seen[r] - token - c * kLanes - lane);
        const Wide<Sum> weight = widened<Sum>(weights + (r * kMostTiles + c) * kLanes + lane);
#pragma GCC unroll 16
        for (int e = 0; e < E; ++e) {
          const Wide<Sum> more = sum[r][e] + weight * widened<Sum>(values + c * stride + e * kLanes + lane);
          sum[r][e] = visible ? more : sum[r][e];
        }
      }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int e = 0; e < E; ++e) store(sums + r * sums_stride + e * kWidth<Sum>, sum[r][e]);
}

// Asks for the tile that lies kAheadBytes further on in what will be read, were all heads of this length.
template <class Store>
struct Ahead {
  const Store* head;
  int64_t head_size, stride, tiles, tile;

  Ahead(const Store* first, int64_t head_size, int64_t stride, int64_t tiles)
      : head_size(head_size), stride(stride), tiles(tiles) {
    const int64_t far = kAheadBytes / int64_t(stride * sizeof(Store)) + 1;
    head = first + far / tiles * head_size;
    tile = far % tiles;
  }

  void fetch() {
    const char* from = reinterpret_cast<const char*>(head + tile * stride);
    for (int64_t i = 0; i < int64_t(stride * sizeof(Store)); i += 64) __builtin_prefetch(from + i, 0, 2);
    if (++tile == tiles) tile = 0, head += head_size;
  }
};

// R rows of one key head: sums [R,E] before the factor, each of kWidth lanes that are still to be added.
template <class Store, class Sum, int R>
void attend(const Store* head, int64_t head_size, bool last, const Sum* q, int64_t D, int64_t E, const int64_t* seen,
            Sum* weights, Sum* sums) {
  constexpr int kBlock = kRegisters / 2 / R;
  const int64_t stride = (D + E) * kLanes;
  int64_t most = seen[0], least = seen[0];
  for (int r = 1; r < R; ++r) {
    most = seen[r] > most ? seen[r] : most;
    least = seen[r] < least ? seen[r] : least;
  }
  const int64_t tiles = (most + kLanes - 1) / kLanes, whole = least / kLanes;
  for (int64_t i = 0; i < R * E * kWidth<Sum>; ++i) sums[i] = 0;
  if (tiles == 0) return;
  int64_t chunk = kChunkBytes / int64_t(stride * sizeof(Store));
  chunk = chunk < 1 ? 1 : chunk > kMostTiles ? kMostTiles : chunk;
  Ahead<Store> ahead(head, head_size, stride, tiles);
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int n = int(tiles - first < chunk ? tiles - first : chunk);
    const int inner = int(whole <= first ? 0 : whole - first < n ? whole - first : n);
    const int64_t token = first * kLanes;
    const Store* tile = head + first * stride;
    for (int c = 0; c < n; ++c) {
      if (last) ahead.fetch();
      if (c < inner)
        weigh<Store, Sum, R, false>(tile + c * stride, q, D, seen, token + c * kLanes, weights + c * kLanes);
      else
        weigh<Store, Sum, R, true>(tile + c * stride, q, D, seen, token + c * kLanes, weights + c * kLanes);
    }
    const Store* values = tile + D * kLanes;
    const auto add = [&](auto add_some, int64_t e) {
      add_some(values + e * kLanes, stride, n, n - inner, weights, seen, token, sums + e * kWidth<Sum>,
               E * kWidth<Sum>);
    };
    int64_t e = 0;
    for (; e + kBlock <= E; e += kBlock) add(add_values<Store, Sum, R, kBlock>, e);
    for (; e + 2 <= E; e += 2) add(add_values<Store, Sum, R, 2>, e);
    for (; e < E; ++e) add(add_values<Store, Sum, R, 1>, e);
  }
}

// One key head of one environment.
template <class Store, class Sum>
struct Head {
  const Problem& p;
  int64_t b, g, held, padding, size;
  Store* stored;

  Head(const Problem& p, int64_t b, int64_t g)
      : p(p), b(b), g(g), held(p.held[b]), padding(p.padding ? p.padding[b] : 0),
        size(p.tiles * (p.key_width + p.value_width) * kLanes),
        stored(static_cast<Store*>(p.cache) + (b * p.key_heads + g) * size) {}

  const Store* at(const void* base, const int64_t* strides, int64_t head, int64_t n) const {
    return static_cast<const Store*>(base) + b * strides[0] + head * strides[1] + n * strides[2];
  }

  void append() const {
    const int64_t D = p.key_width, E = p.value_width;
    for (int64_t n = padding; n < p.tokens; ++n) {
      const int64_t place = held + n - padding;
      Store* to = stored + place / kLanes * (D + E) * kLanes + place % kLanes;
      const Store* k = at(p.k, p.k_strides, g, n);
      const Store* v = at(p.v, p.v_strides, g, n);
      for (int64_t d = 0; d < D; ++d) to[d * kLanes] = k[d * p.k_strides[3]];
      for (int64_t e = 0; e < E; ++e) to[(D + e) * kLanes] = v[e * p.v_strides[3]];
    }
  }

  // R rows from `row` on of the queries that read this head; `scratch` holds q, weights and sums.
  template <int R>
  void answer(int64_t row, bool last, Sum* scratch) const {
    const int64_t D = p.key_width, E = p.value_width, share = p.heads / p.key_heads;
    Sum *q = scratch, *weights = q + kMostRows * D, *sums = weights + kMostRows * kMostTiles * kLanes;
    int64_t seen[R];
    for (int r = 0; r < R; ++r) {
      const int64_t h = g * share + (row + r) / p.tokens, n = (row + r) % p.tokens;
      const Store* from = at(p.q, p.q_strides, h, n);
      for (int64_t d = 0; d < D; ++d) q[r * D + d] = widen(from[d * p.q_strides[3]]);
      seen[r] = n < padding ? 0 : held + n - padding + 1;
    }
    attend<Store, Sum, R>(stored, size, last, q, D, E, seen, weights, sums);
    for (int r = 0; r < R; ++r) {
      const int64_t h = g * share + (row + r) / p.tokens, n = (row + r) % p.tokens;
      const Sum factor = seen[r] ? Sum(p.scale) / Sum(seen[r]) : Sum(0);
      Store* out = static_cast<Store*>(p.out) + ((b * p.tokens + n) * p.heads + h) * E;
      for (int64_t e = 0; e < E; ++e) {
        Sum total = 0;
        for (int lane = 0; lane < kWidth<Sum>; ++lane) total += sums[(r * E + e) * kWidth<Sum> + lane];
        out[e] = narrow<Store>(total * factor);
      }
    }
  }
};

template <class Store, class Sum>
int run(const Problem& p, int threads) {
  const int64_t scratch_size = kMostRows * (p.key_width + kMostTiles * kLanes + p.value_width * kWidth<Sum>);
  const int64_t rows = p.heads / p.key_heads * p.tokens;
  threads = threads_for(p.batch, threads);
  const int64_t wanted = threads > 1 ? threads * kBlocksPerThread : 1, blocks = wanted < p.batch ? wanted : p.batch;
  Sum* scratch = static_cast<Sum*>(std::malloc(sizeof(Sum) * scratch_size * threads));
  if (scratch == nullptr) return 2;
  parallel(blocks, threads, [&](int64_t block, int thread) {
    Sum* own = scratch + thread * scratch_size;
    for (int64_t b = block * p.batch / blocks; b < (block + 1) * p.batch / blocks; ++b)
      for (int64_t g = 0; g < p.key_heads; ++g) {
        const Head<Store, Sum> head(p, b, g);
        head.append();
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4) head.template answer<4>(row, row + 4 == rows, own);
        for (; row + 2 <= rows; row += 2) head.template answer<2>(row, row + 2 == rows, own);
        for (; row < rows; ++row) head.template answer<1>(row, row + 1 == rows, own);
      }
  });
  std::free(scratch);
  return 0;
}

}  // namespace

// dtype: 0 float, 1 double, 2 bfloat16. 0 when done, 1 for an unknown dtype, 2 without memory.
ICRL_EXPORT int icrl_decode(const Problem* problem, int dtype, int threads) {
  switch (dtype) {
    case 0:
      return run<float, float>(*problem, threads);
    case 1:
      return run<double, double>(*problem, threads);
    case 2:
      return run<BFloat16, float>(*problem, threads);
  }
  return 1;
}

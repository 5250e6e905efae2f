// Vectors as wide as the instruction set, from GCC's vector extension (clang has it too).
#pragma once

#include <cstdint>
#include <cstddef>
#include <cstring>

#define ICRL_EXPORT extern "C" __attribute__((visibility("default")))
#define ICRL_INLINE inline __attribute__((always_inline))

namespace icrl {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};

// N elements of type T in one register.
template <class T, int N>
using Vector = typename VectorOf<T, N * int(sizeof(T))>::type;

// Elements of type T in the widest register.
template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));

template <class V, class T>
ICRL_INLINE V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T>
ICRL_INLINE void store(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

// bfloat16 and IEEE half as their bits: kernels convert them to float when they pack, and round when they store.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

ICRL_INLINE float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

ICRL_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

ICRL_INLINE float widen(float x) { return x; }
ICRL_INLINE double widen(double x) { return x; }
ICRL_INLINE float widen(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }

ICRL_INLINE float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  // exponent and mantissa moved into place, then 2^112 mends the bias, of subnormal numbers too
  const float finite = from_bits(rest << 13) * from_bits(0x77800000);
  const uint32_t special = 0x7f800000 | (rest << 13);
  return from_bits(sign | (rest >= 0x7c00 ? special : to_bits(finite)));
}

template <class T>
ICRL_INLINE T narrow(float x);
template <class T>
ICRL_INLINE T narrow(double x);

template <>
ICRL_INLINE float narrow<float>(float x) {
  return x;
}
template <>
ICRL_INLINE double narrow<double>(double x) {
  return x;
}

template <>
ICRL_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40;
  return BFloat16{uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : nearest)};
}

template <>
ICRL_INLINE Half narrow<Half>(float x) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
  // below 2^-14 adding a half lets the adder round to the 2^-24 grid; above, the integer does to the even neighbour
  const uint32_t small = to_bits(from_bits(size) + 0.5f) - to_bits(0.5f);
  const uint32_t large = (size + 0xc8000fff + ((size >> 13) & 1)) >> 13;
  const uint32_t finite = size < 0x38800000 ? small : (size >= 0x477ff000 ? 0x7c00 : large);
  return Half{uint16_t(sign | (size > 0x7f800000 ? 0x7e00 : finite))};
}

}  // namespace icrl

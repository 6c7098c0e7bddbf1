// What code over rows of float32 and bfloat16 is made of: vectors as GCC and clang know them, for any processor.

#include <cstdint>

// torch compiles with -ffp-contract=off, so that its code rounds as torch does uncompiled. These sums are nobody's to
// match: products go into them unrounded, which is nearer to the truth and a fifth faster.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vec_bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t half_bits __attribute__((vector_size(32), aligned(2), may_alias));

constexpr int64_t LANES = 16;

struct bfloat16 {
  uint16_t bits;
};

static inline uint16_t rounded(uint32_t bits) {
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
}

static inline float number(float value) { return value; }
static inline float number(bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}
static inline void put(float* at, float value) { *at = value; }
static inline void put(bfloat16* at, float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  at->bits = rounded(bits);
}
static inline vec load(const float* from) { return *(const vec*)from; }
static inline vec load(const bfloat16* from) {
  return (vec)(__builtin_convertvector(*(const half_bits*)from, vec_bits) << 16);
}
static inline void store(float* at, vec values) { *(vec*)at = values; }
static inline void store(bfloat16* at, vec values) {
  const vec_bits bits = (vec_bits)values;
  *(half_bits*)at = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half_bits);
}

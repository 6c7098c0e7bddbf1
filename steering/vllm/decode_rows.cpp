// Attention of one new token of each request over its blocks of vLLM's cache, as its `vec` kernel lays them out: of every
// head keys [dim, tokens] and behind them values [tokens, dim].
//
// A task is a request and a key head, with the query heads that share it: what was read serves all of them. Logits stay
// in this thread's memory, so the softmax is plain. The next block is fetched while one is computed.

#include <algorithm>
#include <cstdint>
#include <vector>

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
constexpr int64_t TOKENS = 32;  // of a group: blocks are multiples
constexpr int64_t LINE = 64;    // bytes
constexpr float LOWEST = -3e38f;

struct bfloat16 {
  uint16_t bits;
};

static inline vec load(const float* from) { return *(const vec*)from; }
static inline vec load(const bfloat16* from) {
  return (vec)(__builtin_convertvector(*(const half_bits*)from, vec_bits) << 16);
}
static inline void store(float* at, vec values) { *(vec*)at = values; }
static inline void store(bfloat16* at, vec values) {
  const vec_bits bits = (vec_bits)values;
  *(half_bits*)at = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half_bits);
}

static inline vec larger(vec a, vec b) { return a > b ? a : b; }

// exp(x) for x <= 0, within 2 units of the last place; what is below -87 counts as that. NaN stays NaN.
static inline vec exponential(vec given) {
  const vec x = larger(given, vec{} - 87.f);
  constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
  const vec shifted = x * 1.44269504088896341f + ROUND;
  const vec n = shifted - ROUND;
  const vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = vec{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return given == given ? (vec)((vec_int)p + ((vec_int)shifted << 23)) : given;
}

// The same vector with its halves, quarters and so on changed over.
template <int APART>
static inline vec swapped(vec x) {
  vec_int from;
  for (int i = 0; i < LANES; i++) from[i] = i ^ APART;
  return __builtin_shuffle(x, from);
}
static inline float largest(vec x) {
  x = larger(x, swapped<8>(x));
  x = larger(x, swapped<4>(x));
  x = larger(x, swapped<2>(x));
  return larger(x, swapped<1>(x))[0];
}
static inline float sum(vec x) {
  x += swapped<8>(x);
  x += swapped<4>(x);
  x += swapped<2>(x);
  return (x + swapped<1>(x))[0];
}

struct Sizes {
  int64_t requests, heads, kv, dim, block;  // block: tokens of one
  int64_t cache_block, cache_head;          // distances, in elements
  int64_t query_row, out_row, table_row;
};

// Logits of 32 tokens: q [HEADS, dim], scaled, by keys [dim, tokens].
template <int HEADS, typename T>
static inline void score(float* logits, int64_t row, const float* q, const T* keys, const T* next, const Sizes& z) {
  vec sums[HEADS][2] = {};
  for (int64_t d = 0; d < z.dim; d++) {
    for (int64_t t = 0; t < TOKENS; t += LINE / sizeof(T)) __builtin_prefetch(next + d * z.block + t);
    const vec left = load(keys + d * z.block), right = load(keys + d * z.block + LANES);
    for (int h = 0; h < HEADS; h++) {
      sums[h][0] += left * q[h * z.dim + d];
      sums[h][1] += right * q[h * z.dim + d];
    }
  }
  for (int h = 0; h < HEADS; h++) {
    store(logits + h * row, sums[h][0]);
    store(logits + h * row + LANES, sums[h][1]);
  }
}

// Some columns of `out += weights values` for some tokens.
template <int HEADS, int WIDE, typename T>
static inline void gather(float* out, const float* weights, int64_t row, const T* values, const T* next, int64_t tokens,
                          const Sizes& z) {
  vec sums[HEADS][WIDE];
  for (int h = 0; h < HEADS; h++)
    for (int v = 0; v < WIDE; v++) sums[h][v] = load(out + h * z.dim + v * LANES);
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t c = 0; c < WIDE * LANES; c += LINE / sizeof(T)) __builtin_prefetch(next + t * z.dim + c);
    vec value[WIDE];
    for (int v = 0; v < WIDE; v++) value[v] = load(values + t * z.dim + v * LANES);
    for (int h = 0; h < HEADS; h++)
      for (int v = 0; v < WIDE; v++) sums[h][v] += value[v] * weights[h * row + t];
  }
  for (int h = 0; h < HEADS; h++)
    for (int v = 0; v < WIDE; v++) store(out + h * z.dim + v * LANES, sums[h][v]);
}

// One request's query heads of one key head.
template <int HEADS, typename T>
static void attend(T* out, const T* query, const T* cache, const int32_t* table, int64_t length, float scale,
                   const Sizes& z) {
  static thread_local std::vector<float> memory;
  const int64_t row = (length + TOKENS - 1) / TOKENS * TOKENS;
  const int64_t needed = HEADS * (row + 2 * z.dim);
  if ((int64_t)memory.size() < needed) memory.resize(needed);
  float *q = memory.data(), *sums = q + HEADS * z.dim, *logits = sums + HEADS * z.dim;
  for (int64_t i = 0; i < HEADS * z.dim; i += LANES) {
    store(q + i, load(query + i) * scale);
    store(sums + i, vec{});
  }

  const int64_t keys = z.block * z.dim;
  const int64_t blocks = (length + z.block - 1) / z.block;
  for (int64_t b = 0; b < blocks; b++) {
    const T* at = cache + table[b] * z.cache_block;
    const T* next = b + 1 < blocks ? cache + table[b + 1] * z.cache_block : cache + table[0] * z.cache_block + keys;
    const int64_t end = std::min(z.block, row - b * z.block);
    for (int64_t t = 0; t < end; t += TOKENS) score<HEADS>(logits + b * z.block + t, row, q, at + t, next + t, z);
  }
  float totals[HEADS];
  for (int h = 0; h < HEADS; h++) {
    float* line = logits + h * row;
    for (int64_t t = length; t < row; t++) line[t] = LOWEST;  // whatever lay there
    vec most = load(line), all = {};
    for (int64_t t = LANES; t < row; t += LANES) {
      most = larger(load(line + t), most);
    }
    const float top = largest(most);
    for (int64_t t = 0; t < row; t += LANES) {
      const vec weight = exponential(load(line + t) - top);
      store(line + t, weight);
      all += weight;
    }
    totals[h] = sum(all);
  }
  constexpr int WIDE = HEADS <= 4 ? 4 : 2;
  for (int64_t b = 0; b < blocks; b++) {
    const T* at = cache + table[b] * z.cache_block + keys;
    const T* next = b + 1 < blocks ? cache + table[b + 1] * z.cache_block + keys : at;
    const int64_t tokens = std::min(z.block, length - b * z.block);
    const float* weights = logits + b * z.block;
    int64_t d = 0;
    for (; d + WIDE * LANES <= z.dim; d += WIDE * LANES) gather<HEADS, WIDE>(sums + d, weights, row, at + d, next + d, tokens, z);
    for (; d < z.dim; d += LANES) gather<HEADS, 1>(sums + d, weights, row, at + d, next + d, tokens, z);
  }
  for (int h = 0; h < HEADS; h++)
    for (int64_t d = 0; d < z.dim; d += LANES)
      store(out + h * z.dim + d, load(sums + h * z.dim + d) * (1 / totals[h]));
}

template <typename T>
static void attend_all(T* out, const T* query, const T* cache, const int32_t* table, const int32_t* lengths, float scale,
                       const Sizes& z) {
  constexpr int64_t MOST = 8;  // heads at once
  const int64_t shared = z.heads / z.kv;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < z.requests * z.kv; task++) {
    const int64_t request = task / z.kv, head = task % z.kv;
    const T* mine = cache + head * z.cache_head;
    const int32_t* blocks = table + request * z.table_row;
    for (int64_t h = 0; h < shared; h += MOST) {
      const int64_t first = (head * shared + h) * z.dim;
      T* to = out + request * z.out_row + first;
      const T* from = query + request * z.query_row + first;
      const int64_t length = lengths[request];
      switch (std::min(shared - h, MOST)) {
        case 1: attend<1>(to, from, mine, blocks, length, scale, z); break;
        case 2: attend<2>(to, from, mine, blocks, length, scale, z); break;
        case 3: attend<3>(to, from, mine, blocks, length, scale, z); break;
        case 4: attend<4>(to, from, mine, blocks, length, scale, z); break;
        case 5: attend<5>(to, from, mine, blocks, length, scale, z); break;
        case 6: attend<6>(to, from, mine, blocks, length, scale, z); break;
        case 7: attend<7>(to, from, mine, blocks, length, scale, z); break;
        default: attend<8>(to, from, mine, blocks, length, scale, z); break;
      }
    }
  }
}

extern "C" void attend_float32(void* out, const void* query, const void* cache, const int32_t* table,
                               const int32_t* lengths, const int64_t* sizes, float scale) {
  attend_all((float*)out, (const float*)query, (const float*)cache, table, lengths, scale, *(const Sizes*)sizes);
}

extern "C" void attend_bfloat16(void* out, const void* query, const void* cache, const int32_t* table,
                                const int32_t* lengths, const int64_t* sizes, float scale) {
  attend_all((bfloat16*)out, (const bfloat16*)query, (const bfloat16*)cache, table, lengths, scale, *(const Sizes*)sizes);
}

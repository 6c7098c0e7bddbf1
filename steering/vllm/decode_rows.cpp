// Attention of one new token of each request over its blocks of vLLM's cache, as its `vec` kernel lays them out: of every
// head keys [dim, tokens] and behind them values [tokens, dim].
//
// A task is a request and a key head, with the query heads that share it: what was read serves all of them. Logits stay
// in this thread's memory, so the softmax is plain. The next block is fetched while one is computed.
// It comes after vectors.cpp.

#include <algorithm>
#include <vector>

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, vec_int{__VA_ARGS__})
#endif

constexpr int64_t WIDE = 32;  // tokens, and numbers of a head, that are taken together: blocks and heads are multiples
constexpr int64_t LINE = 64;  // bytes
constexpr float LOWEST = -3e38f;

// 32 numbers, as their kind is fastest read: float32 the first 16 and the last, bfloat16 those at even and at odd places.
struct Group {
  vec a, b;
};
static inline Group read(const float* from) { return {load(from), load(from + LANES)}; }
static inline Group read(const bfloat16* from) {
  const vec_bits two = *(const vec_bits*)from;
  return {(vec)(two << 16), (vec)(two & 0xffff0000)};
}
// The same in their order, in float32 and in the group's own kind.
static inline void put_wide(float* to, Group g, const float*) {
  store(to, g.a);
  store(to + LANES, g.b);
}
static inline void put_wide(float* to, Group g, const bfloat16*) {
  store(to, PICK(g.a, g.b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  store(to + LANES, PICK(g.a, g.b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
static inline void put(float* to, Group g) { put_wide(to, g, to); }
static inline vec_bits rounded(vec x) {
  const vec_bits bits = (vec_bits)x;
  return bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
}
static inline void put(bfloat16* to, Group g) { *(vec_bits*)to = (rounded(g.a) >> 16) | (rounded(g.b) & 0xffff0000); }

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

// The same vector with its halves, quarters, pairs and neighbours changed over.
static inline vec halves(vec x) { return PICK(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }
static inline vec quarters(vec x) { return PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11); }
static inline vec pairs(vec x) { return PICK(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13); }
static inline vec neighbours(vec x) { return PICK(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14); }
static inline float largest(vec x) {
  x = larger(x, halves(x));
  x = larger(x, quarters(x));
  x = larger(x, pairs(x));
  return larger(x, neighbours(x))[0];
}
static inline float sum(vec x) {
  x += halves(x);
  x += quarters(x);
  x += pairs(x);
  return (x + neighbours(x))[0];
}

struct Sizes {
  int64_t requests, heads, kv, dim, block;  // block: tokens of one
  int64_t cache_block, cache_head;          // distances, in elements
  int64_t query_row, out_row, table_row;
};

// Logits of 32 tokens: q [HEADS, dim], scaled, by keys [dim, tokens].
template <int HEADS, typename T>
static inline void score(float* logits, int64_t row, const float* q, const T* keys, const T* next, const Sizes& z) {
  Group sums[HEADS] = {};
  for (int64_t d = 0; d < z.dim; d++) {
    for (int64_t t = 0; t < WIDE; t += LINE / sizeof(T)) __builtin_prefetch(next + d * z.block + t);
    const Group tokens = read(keys + d * z.block);
    for (int h = 0; h < HEADS; h++) {
      sums[h].a += tokens.a * q[h * z.dim + d];
      sums[h].b += tokens.b * q[h * z.dim + d];
    }
  }
  for (int h = 0; h < HEADS; h++) put_wide(logits + h * row, sums[h], keys);
}

// 32 or 64 columns of `out += weights values` for some tokens; out is groups.
template <int HEADS, int GROUPS, typename T>
static inline void gather(Group* out, const float* weights, int64_t row, const T* values, const T* next, int64_t tokens,
                          const Sizes& z) {
  const int64_t own = z.dim / WIDE;
  Group sums[HEADS][GROUPS];
  for (int h = 0; h < HEADS; h++)
    for (int g = 0; g < GROUPS; g++) sums[h][g] = out[h * own + g];
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t c = 0; c < GROUPS * WIDE; c += LINE / sizeof(T)) __builtin_prefetch(next + t * z.dim + c);
    Group value[GROUPS];
    for (int g = 0; g < GROUPS; g++) value[g] = read(values + t * z.dim + g * WIDE);
    for (int h = 0; h < HEADS; h++)
      for (int g = 0; g < GROUPS; g++) {
        sums[h][g].a += value[g].a * weights[h * row + t];
        sums[h][g].b += value[g].b * weights[h * row + t];
      }
  }
  for (int h = 0; h < HEADS; h++)
    for (int g = 0; g < GROUPS; g++) out[h * own + g] = sums[h][g];
}

// Logits to weights, and their sum. What lies beyond the last token counts for nothing.
static float soften(float* line, int64_t length, int64_t row) {
  for (int64_t t = length; t < row; t++) line[t] = LOWEST;
  vec most = load(line), all = {};
  for (int64_t t = LANES; t < row; t += LANES) most = larger(load(line + t), most);
  const float top = largest(most);
  for (int64_t t = 0; t < row; t += LANES) {
    const vec weight = exponential(load(line + t) - top);
    store(line + t, weight);
    all += weight;
  }
  return sum(all);
}

// One request's query heads of one key head.
template <int HEADS, typename T>
static void attend(T* out, const T* query, const T* cache, const int32_t* table, int64_t length, float scale,
                   const Sizes& z) {
  static thread_local std::vector<float> memory;
  const int64_t row = (length + WIDE - 1) / WIDE * WIDE, own = z.dim / WIDE;
  const int64_t needed = HEADS * (row + 2 * z.dim);
  if ((int64_t)memory.size() < needed) memory.resize(needed);
  float *q = memory.data(), *logits = q + 2 * HEADS * z.dim;
  Group* sums = (Group*)(q + HEADS * z.dim);
  for (int64_t g = 0; g < HEADS * own; g++) {
    const Group here = read(query + g * WIDE);
    put_wide(q + g * WIDE, {here.a * scale, here.b * scale}, query);
    sums[g] = Group{};
  }
  // Keys of all blocks, then their values; while one is used, what comes next is fetched.
  const int64_t values = z.block * z.dim, blocks = (length + z.block - 1) / z.block;
  const auto block = [&](int64_t b) { return cache + table[b] * z.cache_block; };
  for (int64_t b = 0; b < blocks; b++) {
    const T *keys = block(b), *next = b + 1 < blocks ? block(b + 1) : block(0) + values;
    const int64_t tokens = std::min(z.block, row - b * z.block);
    for (int64_t t = 0; t < tokens; t += WIDE) score<HEADS>(logits + b * z.block + t, row, q, keys + t, next + t, z);
  }
  float totals[HEADS];
  for (int h = 0; h < HEADS; h++) totals[h] = soften(logits + h * row, length, row);
  constexpr int64_t GROUPS = HEADS <= 4 ? 2 : 1;
  for (int64_t b = 0; b < blocks; b++) {
    const T *here = block(b) + values, *next = b + 1 < blocks ? block(b + 1) + values : here;
    const int64_t tokens = std::min(z.block, length - b * z.block);
    const float* weights = logits + b * z.block;
    int64_t g = 0;
    for (; g + GROUPS <= own; g += GROUPS)
      gather<HEADS, GROUPS>(sums + g, weights, row, here + g * WIDE, next + g * WIDE, tokens, z);
    for (; g < own; g++) gather<HEADS, 1>(sums + g, weights, row, here + g * WIDE, next + g * WIDE, tokens, z);
  }
  for (int h = 0; h < HEADS; h++)
    for (int64_t g = 0; g < own; g++) {
      const Group all = sums[h * own + g];
      put(out + h * z.dim + g * WIDE, Group{all.a / totals[h], all.b / totals[h]});
    }
}

template <typename T>
static void attend_all(T* out, const T* query, const T* cache, const int32_t* table, const int32_t* lengths, float scale,
                       const Sizes& z) {
  constexpr int64_t MOST = 8;  // heads at once
  const int64_t shared = z.heads / z.kv;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < z.requests * z.kv; task++) {
    const int64_t request = task / z.kv, head = task % z.kv, length = lengths[request];
    if (length <= 0) continue;  // nobody's row
    const T* mine = cache + head * z.cache_head;
    const int32_t* blocks = table + request * z.table_row;
    for (int64_t h = 0; h < shared; h += MOST) {
      const int64_t first = (head * shared + h) * z.dim;
      T* to = out + request * z.out_row + first;
      const T* from = query + request * z.query_row + first;
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

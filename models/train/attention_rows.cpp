// Attention over packed rows, forwards and backwards, for AVX-512: only where somebody sees something is anything computed.
//
// A token sees two runs of keys: the opening that its conversation shares, and its own conversation up to itself. Queries
// of one key head go in blocks, keys in blocks of 64; a pair of blocks in which no query sees a key is left out. The
// softmax is made as the blocks come (arXiv 2205.14135, algorithm 1), and computed again from its logarithm on the way
// back (section 3.1). All products are of a panel by [k, 16 n] in registers.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

typedef int64_t index_t;

constexpr index_t LANES = 16;
constexpr index_t KEYS = 64;     // keys of a block
constexpr index_t QUERIES = 32;  // queries of a block, for each of the heads that share a key head
constexpr float UNSEEN = -1e30f;

typedef std::vector<float> floats;

struct Shape {
  index_t batch, heads, kv, length, dim;
};
// A tensor [batch, heads, length, dim] whose last dimension lies together.
struct Strides {
  index_t batch, head, token;
};

static inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.f, 1.f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// Rows of c += op(a) b: a [rows, k], or [k, rows] with ACROSS; b [k, 16 N].
template <int N, int ROWS, bool ACROSS>
static inline void panel(float* c, index_t c_row, const float* a, index_t a_row, const float* b, index_t b_row, index_t k) {
  __m512 sums[ROWS][N];
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < N; n++) sums[r][n] = _mm512_loadu_ps(c + r * c_row + n * LANES);
  for (index_t i = 0; i < k; i++) {
    __m512 row[N];
    for (int n = 0; n < N; n++) row[n] = _mm512_loadu_ps(b + i * b_row + n * LANES);
    for (int r = 0; r < ROWS; r++) {
      const __m512 one = _mm512_set1_ps(ACROSS ? a[i * a_row + r] : a[r * a_row + i]);
      for (int n = 0; n < N; n++) sums[r][n] = _mm512_fmadd_ps(one, row[n], sums[r][n]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < N; n++) _mm512_storeu_ps(c + r * c_row + n * LANES, sums[r][n]);
}

template <int N, bool ACROSS>
static void product(float* c, index_t c_row, const float* a, index_t a_row, const float* b, index_t b_row, index_t rows,
                    index_t k) {
  constexpr int MOST = 24 / N;  // accumulators that the registers hold
  index_t r = 0;
  const auto some = [&](auto many) {
    constexpr int ROWS = decltype(many)::value;
    for (; r + ROWS <= rows; r += ROWS)
      panel<N, ROWS, ACROSS>(c + r * c_row, c_row, a + (ACROSS ? r : r * a_row), a_row, b, b_row, k);
  };
  some(std::integral_constant<int, MOST>());
  if (MOST > 4) some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
}

// What the tokens of a row see: keys first..opened, and own..themselves.
struct Sight {
  const int32_t *first, *opened, *own;

  bool sees(index_t t, index_t key) const { return (key >= first[t] && key < opened[t]) || (key >= own[t] && key <= t); }
  bool any(index_t t, index_t from, index_t to) const {  // of the keys from..to
    return std::max<index_t>(from, first[t]) < std::min<index_t>(to, opened[t]) ||
           std::max<index_t>(from, own[t]) < std::min<index_t>(to, t + 1);
  }
  bool all(index_t t, index_t from, index_t to) const {
    return (from >= first[t] && to <= opened[t]) || (from >= own[t] && to <= t + 1);
  }
};

// The block of keys from `from` on, as the block of queries start..end sees it.
struct Pair {
  index_t from, count;
  bool whole;
};

static void pairs_of(std::vector<Pair>& pairs, const Sight& sight, index_t start, index_t end, index_t length) {
  pairs.clear();
  for (index_t from = 0; from < end; from += KEYS) {
    const index_t to = std::min(from + KEYS, length);
    bool any = false, all = to - from == KEYS;
    for (index_t t = start; t < end; t++) any = any || sight.any(t, from, to), all = all && sight.all(t, from, to);
    if (any) pairs.push_back({from, to - from, all});
  }
}

// Logits of a pair, [rows, 64]: UNSEEN where a query does not see a key.
static void logits_of(float* s, const float* q, const float* keys_across, const Pair& pair, const Sight& sight, index_t start,
                      index_t queries, index_t heads, index_t dim) {
  std::fill(s, s + heads * queries * KEYS, 0.f);
  product<KEYS / LANES, false>(s, KEYS, q, dim, keys_across, KEYS, heads * queries, dim);
  if (pair.whole) return;
  for (index_t t = 0; t < queries; t++)
    for (index_t key = 0; key < KEYS; key++)
      if (key >= pair.count || !sight.sees(start + t, pair.from + key))
        for (index_t h = 0; h < heads; h++) s[(h * queries + t) * KEYS + key] = UNSEEN;
}

// [blocks of keys, dim, 64] of [length, dim]: blocks across, padded with zeros.
static void lay_across(floats& out, const float* from, index_t row, index_t length, index_t dim) {
  out.assign((length + KEYS - 1) / KEYS * KEYS * dim, 0.f);
  for (index_t t = 0; t < length; t++)
    for (index_t d = 0; d < dim; d++) out[(t / KEYS * dim + d) * KEYS + t % KEYS] = from[t * row + d];
}

// Block of queries of all heads that share a key head, [heads, queries, dim].
static void gather(float* to, const float* from, const Strides& s, index_t start, index_t queries, index_t heads,
                   index_t dim, float scale) {
  for (index_t h = 0; h < heads; h++)
    for (index_t t = 0; t < queries; t++)
      for (index_t d = 0; d < dim; d++) to[(h * queries + t) * dim + d] = from[h * s.head + (start + t) * s.token + d] * scale;
}

static Sight sight_of(const int32_t* bounds, index_t b, index_t length) {
  const int32_t* mine = bounds + b * 3 * length;
  return {mine, mine + length, mine + 2 * length};
}

template <int N>
static void forwards(const Shape& z, float* out, float* logs, const float* q, const Strides& qs, const float* k,
                     const Strides& ks, const float* v, const Strides& vs, const int32_t* bounds, float scale) {
  const index_t heads = z.heads / z.kv, most = heads * QUERIES;
#pragma omp parallel for schedule(dynamic)
  for (index_t task = 0; task < z.batch * z.kv; task++) {
    const index_t b = task / z.kv, g = task % z.kv;
    const Sight sight = sight_of(bounds, b, z.length);
    const float* values = v + b * vs.batch + g * vs.head;
    floats across, mine(most * z.dim), s(most * KEYS), sums(most * z.dim), highest(most), total(most);
    std::vector<Pair> pairs;
    lay_across(across, k + b * ks.batch + g * ks.head, ks.token, z.length, z.dim);
    for (index_t start = 0; start < z.length; start += QUERIES) {
      const index_t end = std::min(start + QUERIES, z.length), queries = end - start, rows = heads * queries;
      gather(mine.data(), q + b * qs.batch + g * heads * qs.head, qs, start, queries, heads, z.dim, scale);
      std::fill(sums.begin(), sums.end(), 0.f);
      std::fill(highest.begin(), highest.end(), UNSEEN);
      std::fill(total.begin(), total.end(), 0.f);
      pairs_of(pairs, sight, start, end, z.length);
      for (const Pair& pair : pairs) {
        logits_of(s.data(), mine.data(), across.data() + pair.from * z.dim, pair, sight, start, queries, heads, z.dim);
        for (index_t r = 0; r < rows; r++) {
          float* row = s.data() + r * KEYS;
          __m512 top = _mm512_loadu_ps(row);
          for (index_t c = LANES; c < KEYS; c += LANES) top = _mm512_max_ps(top, _mm512_loadu_ps(row + c));
          const float before = highest[r], now = std::max(before, _mm512_reduce_max_ps(top));
          const float shrunk = before == now ? 1.f : _mm512_cvtss_f32(exponential(_mm512_set1_ps(before - now)));
          __m512 sum = _mm512_setzero_ps();
          for (index_t c = 0; c < KEYS; c += LANES) {
            const __m512 x = _mm512_loadu_ps(row + c);
            const __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(UNSEEN), _CMP_GT_OQ);
            const __m512 e = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(x, _mm512_set1_ps(now))));
            _mm512_storeu_ps(row + c, e);
            sum = _mm512_add_ps(sum, e);
          }
          highest[r] = now;
          total[r] = total[r] * shrunk + _mm512_reduce_add_ps(sum);
          if (shrunk != 1.f)
            for (index_t d = 0; d < z.dim; d += LANES) {
              float* at = sums.data() + r * z.dim + d;
              _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(shrunk)));
            }
        }
        product<N, false>(sums.data(), z.dim, s.data(), KEYS, values + pair.from * vs.token, vs.token, rows, pair.count);
      }
      for (index_t h = 0; h < heads; h++)
        for (index_t t = 0; t < queries; t++) {
          const index_t r = h * queries + t, head = g * heads + h;
          float* to = out + ((b * z.length + start + t) * z.heads + head) * z.dim;
          for (index_t d = 0; d < z.dim; d++) to[d] = sums[r * z.dim + d] / total[r];
          logs[(b * z.heads + head) * z.length + start + t] = highest[r] + __builtin_logf(total[r]);
        }
    }
  }
}

template <int N>
static void backwards(const Shape& z, float* dq, float* dk, float* dv, const float* dout, const float* out,
                      const float* logs, const float* q, const Strides& qs, const float* k, const Strides& ks, const float* v,
                      const Strides& vs, const int32_t* bounds, float scale) {
  const index_t heads = z.heads / z.kv, most = heads * QUERIES;
  const Strides laid = {z.length * z.heads * z.dim, z.dim, z.heads * z.dim};  // of out: [batch, length, heads, dim]
#pragma omp parallel for schedule(dynamic)
  for (index_t task = 0; task < z.batch * z.kv; task++) {
    const index_t b = task / z.kv, g = task % z.kv;
    const Sight sight = sight_of(bounds, b, z.length);
    const float* keys = k + b * ks.batch + g * ks.head;
    floats keys_across, values_across, mine(most * z.dim), given(most * z.dim), was(most * z.dim), p(most * KEYS),
        ds(most * KEYS), back(most * z.dim), delta(most), log(most);
    std::vector<Pair> pairs;
    lay_across(keys_across, keys, ks.token, z.length, z.dim);
    lay_across(values_across, v + b * vs.batch + g * vs.head, vs.token, z.length, z.dim);
    float* my_dk = dk + (b * z.kv + g) * z.length * z.dim;
    float* my_dv = dv + (b * z.kv + g) * z.length * z.dim;
    std::fill(my_dk, my_dk + z.length * z.dim, 0.f);
    std::fill(my_dv, my_dv + z.length * z.dim, 0.f);
    for (index_t start = 0; start < z.length; start += QUERIES) {
      const index_t end = std::min(start + QUERIES, z.length), queries = end - start, rows = heads * queries;
      gather(mine.data(), q + b * qs.batch + g * heads * qs.head, qs, start, queries, heads, z.dim, scale);
      gather(given.data(), dout + b * laid.batch + g * heads * laid.head, laid, start, queries, heads, z.dim, 1.f);
      gather(was.data(), out + b * laid.batch + g * heads * laid.head, laid, start, queries, heads, z.dim, 1.f);
      for (index_t r = 0; r < rows; r++) {
        float sum = 0.f;
        for (index_t d = 0; d < z.dim; d++) sum += given[r * z.dim + d] * was[r * z.dim + d];
        delta[r] = sum;
        log[r] = logs[(b * z.heads + g * heads + r / queries) * z.length + start + r % queries];
      }
      std::fill(back.begin(), back.end(), 0.f);
      pairs_of(pairs, sight, start, end, z.length);
      for (const Pair& pair : pairs) {
        const index_t at = pair.from * z.dim;
        logits_of(p.data(), mine.data(), keys_across.data() + at, pair, sight, start, queries, heads, z.dim);
        std::fill(ds.begin(), ds.begin() + rows * KEYS, 0.f);
        product<KEYS / LANES, false>(ds.data(), KEYS, given.data(), z.dim, values_across.data() + at, KEYS, rows, z.dim);
        for (index_t r = 0; r < rows; r++)
          for (index_t c = 0; c < KEYS; c += LANES) {
            float *weight = p.data() + r * KEYS + c, *slope = ds.data() + r * KEYS + c;
            const __m512 x = _mm512_loadu_ps(weight);
            const __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(UNSEEN), _CMP_GT_OQ);
            const __m512 e = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(x, _mm512_set1_ps(log[r]))));
            _mm512_storeu_ps(weight, e);
            _mm512_storeu_ps(slope, _mm512_mul_ps(e, _mm512_sub_ps(_mm512_loadu_ps(slope), _mm512_set1_ps(delta[r]))));
          }
        product<N, true>(my_dv + at, z.dim, p.data(), KEYS, given.data(), z.dim, pair.count, rows);
        product<N, true>(my_dk + at, z.dim, ds.data(), KEYS, mine.data(), z.dim, pair.count, rows);
        product<N, false>(back.data(), z.dim, ds.data(), KEYS, keys + pair.from * ks.token, ks.token, rows, pair.count);
      }
      for (index_t h = 0; h < heads; h++)
        for (index_t t = 0; t < queries; t++) {
          float* to = dq + ((b * z.heads + g * heads + h) * z.length + start + t) * z.dim;
          for (index_t d = 0; d < z.dim; d++) to[d] = back[(h * queries + t) * z.dim + d] * scale;
        }
    }
  }
}

static Strides strides_of(const int64_t* from) { return {from[0], from[1], from[2]}; }

// sizes: batch, heads, key heads, length, dim (16, 32, 64 or 128); then batch, head and token strides of q, k and v.
extern "C" void attention_forwards(float* out, float* logs, const float* q, const float* k, const float* v,
                                   const int32_t* bounds, const int64_t* sizes, float scale) {
  const Shape z = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  const Strides qs = strides_of(sizes + 5), ks = strides_of(sizes + 8), vs = strides_of(sizes + 11);
  switch (z.dim / LANES) {
    case 1: return forwards<1>(z, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 2: return forwards<2>(z, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 4: return forwards<4>(z, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 8: return forwards<8>(z, out, logs, q, qs, k, ks, v, vs, bounds, scale);
  }
}

// dq, dk and dv are contiguous.
extern "C" void attention_backwards(float* dq, float* dk, float* dv, const float* dout, const float* out, const float* logs,
                                    const float* q, const float* k, const float* v, const int32_t* bounds,
                                    const int64_t* sizes, float scale) {
  const Shape z = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  const Strides qs = strides_of(sizes + 5), ks = strides_of(sizes + 8), vs = strides_of(sizes + 11);
  switch (z.dim / LANES) {
    case 1: return backwards<1>(z, dq, dk, dv, dout, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 2: return backwards<2>(z, dq, dk, dv, dout, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 4: return backwards<4>(z, dq, dk, dv, dout, out, logs, q, qs, k, ks, v, vs, bounds, scale);
    case 8: return backwards<8>(z, dq, dk, dv, dout, out, logs, q, qs, k, ks, v, vs, bounds, scale);
  }
}

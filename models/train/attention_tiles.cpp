// Attention over packed rows in bfloat16, forwards and backwards, for processors with AMX. It comes after tiles.cpp and
// attention_rows.cpp and goes as that does, but all lies across: logits are [keys, queries], so that a softmax is made of
// whole vectors.

constexpr index_t PAIRS = TILE * TILE;

template <typename T>
struct Aligned {
  std::vector<T> data;
  T* at;
  explicit Aligned(index_t count) : data(count + 64 / sizeof(T)) {
    at = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data.data()) + 63) / 64 * 64);
  }
  operator T*() { return at; }
};

// c [16 m, 16 n] = or += a [16 m, 32 k] b, b tiles of pairs [k, n], `b_step` words from one k to the next; m and n even.
template <bool ADD>
static void multiply(float* c, index_t c_row, const bf16* a, index_t a_row, const uint32_t* b, index_t b_step, index_t m,
                     index_t n, index_t k) {
  for (index_t i = 0; i < m; i += 2)
    for (index_t j = 0; j < n; j += 2) {
      float *upper = c + i * TILE * c_row + j * TILE, *lower = upper + TILE * c_row;
      if (ADD) {
        _tile_loadd(0, upper, c_row * 4);
        _tile_loadd(1, upper + TILE, c_row * 4);
        _tile_loadd(2, lower, c_row * 4);
        _tile_loadd(3, lower + TILE, c_row * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (index_t s = 0; s < k; s++) {
        _tile_loadd(4, a + i * TILE * a_row + s * STEP, a_row * 2);
        _tile_loadd(5, a + (i + 1) * TILE * a_row + s * STEP, a_row * 2);
        _tile_loadd(6, b + s * b_step + j * PAIRS, 64);
        _tile_loadd(7, b + s * b_step + (j + 1) * PAIRS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, upper, c_row * 4);
      _tile_stored(1, upper + TILE, c_row * 4);
      _tile_stored(2, lower, c_row * 4);
      _tile_stored(3, lower + TILE, c_row * 4);
    }
}

static inline __m512i every(index_t stride) {
  return _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                            _mm512_set1_epi32(stride));
}

static inline void store_bf16(bf16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline __m512 load_bf16(const bf16* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}

// Rows of [count, dim] together.
static void copy_rows(bf16* to, const bf16* from, index_t row, index_t count, index_t dim) {
  for (index_t t = 0; t < count; t++) std::copy(from + t * row, from + t * row + dim, to + t * dim);
}

// [rows, dim] across, as tiles of pairs [dim / 32, rows / 16].
static void pairs_across(uint32_t* to, const bf16* from, index_t rows, index_t dim) {
  const __m512i rows_apart = every(dim / 2);
  for (index_t s = 0; s < dim / STEP; s++)
    for (index_t j = 0; j < rows / TILE; j++)
      for (index_t i = 0; i < TILE; i++, to += TILE)
        _mm512_store_si512(to, _mm512_i32gather_epi32(rows_apart, (const int*)(from + j * TILE * dim + s * STEP) + i, 4));
}

// [rows, dim] as tiles of pairs [rows / 32, dim / 16].
static void pairs_down(uint32_t* to, const bf16* from, index_t rows, index_t dim) {
  for (index_t s = 0; s < rows / STEP; s++)
    for (index_t j = 0; j < dim / TILE; j++)
      for (index_t i = 0; i < TILE; i++, to += TILE) {
        const bf16* at = from + (s * STEP + 2 * i) * dim + j * TILE;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(at + dim)));
        _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
}

// [rows, dim] across, [dim, rows].
static void across(bf16* to, const bf16* from, index_t rows, index_t dim) {
  const __m512i rows_apart = every(dim / 2);
  for (index_t d = 0; d < dim; d += 2)
    for (index_t t = 0; t < rows; t += TILE) {
      const __m512i two = _mm512_i32gather_epi32(rows_apart, (const int*)(from + t * dim + d), 4);
      _mm256_store_si256((__m256i*)(to + d * rows + t), _mm512_cvtepi32_epi16(two));
      _mm256_store_si256((__m256i*)(to + (d + 1) * rows + t), _mm512_cvtepi32_epi16(_mm512_srli_epi32(two, 16)));
    }
}

// Two rows' entries side by side: words of the first's in their lower halves.
static inline __m512i paired(__m512 low, __m512 high) {
  const __m512i sides = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  const __m512i lanes = every(1);
  return _mm512_permutexvar_epi16(_mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(16)), 16)),
                                  sides);
}

// Which of 16 queries from `t` on see each of 64 keys.
static void seen_by(__mmask16* seen, const Sight& sight, index_t t, index_t end, index_t from) {
  const __mmask16 some = end - t >= TILE ? 0xffff : end <= t ? 0 : (1u << (end - t)) - 1;
  const __m512i first = _mm512_maskz_loadu_epi32(some, sight.first + t), own = _mm512_maskz_loadu_epi32(some, sight.own + t);
  const __m512i opened = _mm512_maskz_loadu_epi32(some, sight.opened + t), self = _mm512_add_epi32(every(1), _mm512_set1_epi32(t));
  for (index_t k = 0; k < KEYS; k++) {
    const __m512i key = _mm512_set1_epi32(from + k);
    const __mmask16 opening = _mm512_cmple_epi32_mask(first, key) & _mm512_cmplt_epi32_mask(key, opened);
    seen[k] = some & (opening | (_mm512_cmple_epi32_mask(own, key) & _mm512_cmple_epi32_mask(key, self)));
  }
}

static void all_seen(__mmask16 seen[2][KEYS], const Pair& pair, const Sight& sight, index_t start, index_t end) {
  if (pair.whole && end - start == QUERIES) std::fill(seen[0], seen[0] + 2 * KEYS, (__mmask16)0xffff);
  else
    for (index_t half = 0; half < 2; half++) seen_by(seen[half], sight, start + half * TILE, end, pair.from);
}

static index_t padded(index_t length) { return (length + KEYS - 1) / KEYS * KEYS; }

static void tile_forwards(const Shape& z, bf16* out, float* logs, const bf16* q, const Strides& qs, const bf16* k,
                          const Strides& ks, const bf16* v, const Strides& vs, const int32_t* bounds, float scale) {
  static_assert(QUERIES == 2 * TILE && KEYS == 2 * STEP, "");
  const index_t heads = z.heads / z.kv, rows = heads * QUERIES, all = padded(z.length), dim = z.dim;
#pragma omp parallel
  {
    const Tiles tiles;
    Aligned<bf16> keys(all * dim), values(all * dim), values_across(all * dim), mine(rows * dim);
    Aligned<uint32_t> mine_pairs(rows * dim / 2), p(KEYS * rows / 2);
    Aligned<float> s(KEYS * rows), sums(dim * rows), highest(rows), total(rows);
    std::vector<Pair> pairs;
    __mmask16 seen[2][KEYS];
#pragma omp for schedule(dynamic)
    for (index_t task = 0; task < z.batch * z.kv; task++) {
      const index_t b = task / z.kv, g = task % z.kv;
      const Sight sight = sight_of(bounds, b, z.length);
      copy_rows(keys, k + b * ks.batch + g * ks.head, ks.token, z.length, dim);
      copy_rows(values, v + b * vs.batch + g * vs.head, vs.token, z.length, dim);
      across(values_across, values, all, dim);
      for (index_t start = 0; start < z.length; start += QUERIES) {
        const index_t end = std::min(start + QUERIES, z.length);
        for (index_t h = 0; h < heads; h++)
          copy_rows(mine + h * QUERIES * dim, q + b * qs.batch + (g * heads + h) * qs.head + start * qs.token, qs.token,
                    end - start, dim);
        pairs_across(mine_pairs, mine, rows, dim);
        std::fill(sums.at, sums.at + dim * rows, 0.f);
        std::fill(highest.at, highest.at + rows, UNSEEN);
        std::fill(total.at, total.at + rows, 0.f);
        pairs_of(pairs, sight, start, end, z.length);
        for (const Pair& pair : pairs) {
          multiply<false>(s, rows, keys + pair.from * dim, dim, mine_pairs, rows / TILE * PAIRS, KEYS / TILE, rows / TILE,
                          dim / STEP);
          all_seen(seen, pair, sight, start, end);
          for (index_t c = 0; c < rows; c += TILE) {
            const __mmask16* sees = seen[c / TILE % 2];
            const __m512 before = _mm512_load_ps(highest + c), times = _mm512_set1_ps(scale);
            __m512 top = before, sum = _mm512_setzero_ps();
            for (index_t key = 0; key < KEYS; key++)
              top = _mm512_mask_max_ps(top, sees[key], top, _mm512_mul_ps(_mm512_load_ps(s + key * rows + c), times));
            for (index_t key = 0; key < KEYS; key += 2) {
              const float* at = s + key * rows + c;
              const __m512 low = exponential(_mm512_fmsub_ps(_mm512_load_ps(at), times, top));
              const __m512 high = exponential(_mm512_fmsub_ps(_mm512_load_ps(at + rows), times, top));
              const __m512 a = _mm512_maskz_mov_ps(sees[key], low), b = _mm512_maskz_mov_ps(sees[key + 1], high);
              sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
              _mm512_store_si512(p + (key / STEP * (rows / TILE) + c / TILE) * PAIRS + key % STEP / 2 * TILE, paired(a, b));
            }
            const __m512 shrunk = exponential(_mm512_sub_ps(before, top));
            _mm512_store_ps(highest + c, top);
            _mm512_store_ps(total + c, _mm512_fmadd_ps(_mm512_load_ps(total + c), shrunk, sum));
            if (_mm512_cmpneq_ps_mask(before, top))
              for (index_t d = 0; d < dim; d++)
                _mm512_store_ps(sums + d * rows + c, _mm512_mul_ps(_mm512_load_ps(sums + d * rows + c), shrunk));
          }
          multiply<true>(sums, rows, values_across + pair.from, all, p, rows / TILE * PAIRS, dim / TILE, rows / TILE,
                         KEYS / STEP);
        }
        const __m512i rows_apart = every(rows);
        for (index_t h = 0; h < heads; h++)
          for (index_t t = 0; t < end - start; t++) {
            const index_t r = h * QUERIES + t, head = g * heads + h;
            bf16* to = out + ((b * z.length + start + t) * z.heads + head) * dim;
            const __m512 share = _mm512_set1_ps(1.f / total[r]);
            for (index_t d = 0; d < dim; d += TILE)
              store_bf16(to + d, _mm512_mul_ps(_mm512_i32gather_ps(rows_apart, sums + d * rows + r, 4), share));
            logs[(b * z.heads + head) * z.length + start + t] = highest[r] + __builtin_logf(total[r]);
          }
      }
    }
  }
}

static void tile_backwards(const Shape& z, bf16* dq, bf16* dk, bf16* dv, const bf16* dout, const bf16* out, const float* logs,
                           const bf16* q, const Strides& qs, const bf16* k, const Strides& ks, const bf16* v,
                           const Strides& vs, const int32_t* bounds, float scale) {
  const index_t heads = z.heads / z.kv, rows = heads * QUERIES, all = padded(z.length), dim = z.dim;
#pragma omp parallel
  {
    const Tiles tiles;
    Aligned<bf16> keys(all * dim), values(all * dim), keys_across(all * dim), mine(rows * dim), given(rows * dim),
        p(KEYS * rows), ds(KEYS * rows);
    Aligned<uint32_t> mine_across(rows * dim / 2), given_across(rows * dim / 2), mine_down(rows * dim / 2),
        given_down(rows * dim / 2), ds_pairs(KEYS * rows / 2);
    Aligned<float> s(KEYS * rows), slope(KEYS * rows), back(dim * rows), log(rows), delta(rows), my_dk(all * dim),
        my_dv(all * dim);
    std::vector<Pair> pairs;
    __mmask16 seen[2][KEYS];
#pragma omp for schedule(dynamic)
    for (index_t task = 0; task < z.batch * z.kv; task++) {
      const index_t b = task / z.kv, g = task % z.kv;
      const Sight sight = sight_of(bounds, b, z.length);
      copy_rows(keys, k + b * ks.batch + g * ks.head, ks.token, z.length, dim);
      copy_rows(values, v + b * vs.batch + g * vs.head, vs.token, z.length, dim);
      across(keys_across, keys, all, dim);
      std::fill(my_dk.at, my_dk.at + all * dim, 0.f);
      std::fill(my_dv.at, my_dv.at + all * dim, 0.f);
      for (index_t start = 0; start < z.length; start += QUERIES) {
        const index_t end = std::min(start + QUERIES, z.length), queries = end - start;
        if (queries < QUERIES) std::fill(mine.at, mine.at + rows * dim, 0), std::fill(given.at, given.at + rows * dim, 0);
        std::fill(log.at, log.at + rows, 0.f);
        std::fill(delta.at, delta.at + rows, 0.f);
        for (index_t h = 0; h < heads; h++) {
          const index_t head = g * heads + h, place = ((b * z.length + start) * z.heads + head) * dim;
          copy_rows(mine + h * QUERIES * dim, q + b * qs.batch + head * qs.head + start * qs.token, qs.token, queries, dim);
          copy_rows(given + h * QUERIES * dim, dout + place, z.heads * dim, queries, dim);
          for (index_t t = 0; t < queries; t++) {
            const index_t at = place + t * z.heads * dim;
            __m512 sum = _mm512_setzero_ps();
            for (index_t d = 0; d < dim; d += TILE)
              sum = _mm512_fmadd_ps(load_bf16(dout + at + d), load_bf16(out + at + d), sum);
            delta[h * QUERIES + t] = _mm512_reduce_add_ps(sum);
            log[h * QUERIES + t] = logs[(b * z.heads + head) * z.length + start + t];
          }
        }
        pairs_across(mine_across, mine, rows, dim);
        pairs_across(given_across, given, rows, dim);
        pairs_down(mine_down, mine, rows, dim);
        pairs_down(given_down, given, rows, dim);
        std::fill(back.at, back.at + dim * rows, 0.f);
        pairs_of(pairs, sight, start, end, z.length);
        for (const Pair& pair : pairs) {
          const index_t at = pair.from * dim, tall = KEYS / TILE, wide = rows / TILE;
          multiply<false>(s, rows, keys + at, dim, mine_across, wide * PAIRS, tall, wide, dim / STEP);
          multiply<false>(slope, rows, values + at, dim, given_across, wide * PAIRS, tall, wide, dim / STEP);
          all_seen(seen, pair, sight, start, end);
          for (index_t c = 0; c < rows; c += TILE) {
            const __mmask16* sees = seen[c / TILE % 2];
            const __m512 minus = _mm512_load_ps(log + c), less = _mm512_load_ps(delta + c), times = _mm512_set1_ps(scale);
            for (index_t key = 0; key < KEYS; key += 2) {
              __m512 weight[2], turn[2];
              for (index_t i = 0; i < 2; i++) {
                const index_t here = (key + i) * rows + c;
                weight[i] = _mm512_maskz_mov_ps(
                    sees[key + i], exponential(_mm512_fmsub_ps(_mm512_load_ps(s + here), times, minus)));
                turn[i] = _mm512_mul_ps(weight[i], _mm512_sub_ps(_mm512_load_ps(slope + here), less));
                store_bf16(p + here, weight[i]);
                store_bf16(ds + here, turn[i]);
              }
              _mm512_store_si512(ds_pairs + (key / STEP * wide + c / TILE) * PAIRS + key % STEP / 2 * TILE,
                                 paired(turn[0], turn[1]));
            }
          }
          multiply<true>(my_dv + at, dim, p, rows, given_down, dim / TILE * PAIRS, tall, dim / TILE, rows / STEP);
          multiply<true>(my_dk + at, dim, ds, rows, mine_down, dim / TILE * PAIRS, tall, dim / TILE, rows / STEP);
          multiply<true>(back, rows, keys_across + pair.from, all, ds_pairs, wide * PAIRS, dim / TILE, wide, KEYS / STEP);
        }
        const __m512i rows_apart = every(rows);
        for (index_t h = 0; h < heads; h++)
          for (index_t t = 0; t < queries; t++)
            for (index_t d = 0; d < dim; d += TILE) {
              const __m512 x = _mm512_i32gather_ps(rows_apart, back + d * rows + h * QUERIES + t, 4);
              store_bf16(dq + ((b * z.heads + g * heads + h) * z.length + start + t) * dim + d,
                         _mm512_mul_ps(x, _mm512_set1_ps(scale)));
            }
      }
      const index_t place = (b * z.kv + g) * z.length * dim;
      for (index_t i = 0; i < z.length * dim; i += TILE) {
        store_bf16(dk + place + i, _mm512_mul_ps(_mm512_load_ps(my_dk + i), _mm512_set1_ps(scale)));
        store_bf16(dv + place + i, _mm512_load_ps(my_dv + i));
      }
    }
  }
}

// As attention_forwards and attention_backwards, in bfloat16; logs are float32. dim is 32, 64 or 128.
extern "C" void tile_attention_forwards(bf16* out, float* logs, const bf16* q, const bf16* k, const bf16* v,
                                        const int32_t* bounds, const int64_t* sizes, float scale) {
  const Shape z = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  tile_forwards(z, out, logs, q, strides_of(sizes + 5), k, strides_of(sizes + 8), v, strides_of(sizes + 11), bounds, scale);
}
extern "C" void tile_attention_backwards(bf16* dq, bf16* dk, bf16* dv, const bf16* dout, const bf16* out, const float* logs,
                                         const bf16* q, const bf16* k, const bf16* v, const int32_t* bounds,
                                         const int64_t* sizes, float scale) {
  const Shape z = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  tile_backwards(z, dq, dk, dv, dout, out, logs, q, strides_of(sizes + 5), k, strides_of(sizes + 8), v,
                 strides_of(sizes + 11), bounds, scale);
}

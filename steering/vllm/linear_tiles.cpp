// y = x w^T in float32 where every weight is a bfloat16 number, as those of published models are. It comes after tiles.cpp.
//
// A float32 number is the sum of three of bfloat16, and the product of two bfloat16 numbers is exact in float32. So three
// products in AMX tiles, summed in float32, are what one product in float32 is, up to the order of its sums. Weights are
// read as bfloat16: half the bytes.
//
// What comes out of a row does not depend on the rows beside it: its sums go in the same order in every batch.

#include <omp.h>

#include <algorithm>
#include <vector>

constexpr index_t PARTS = 3;
constexpr index_t ENTRIES = TILE * STEP;       // of a tile
constexpr index_t WIDE = 2 * TILE;             // columns of a block of weights, and rows of a block of x
constexpr index_t AHEAD = 2048;                // bytes of weights
constexpr index_t CACHE = 1 << 19;             // entries of x's parts at most, unless one block of rows has more
constexpr index_t HELD = 1 << 21;              // weights of a layer

static inline __m512 lower(__m512i two) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(two)), 16));
}
static inline __m512 upper(__m512i two) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(two, 1)), 16));
}

// A row of a tile of each part: what rounding leaves over is the next part.
static inline void split(bf16* to, const float* from) {
  __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + TILE);
  for (index_t part = 0; part < PARTS; part++) {
    const __m512i two = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    _mm512_store_si512(to + part * ENTRIES, two);
    a = _mm512_sub_ps(a, lower(two));
    b = _mm512_sub_ps(b, upper(two));
  }
}

// Rows of x as tiles [rows / 16, K / 32, PARTS]; rows that are not there are zero.
static void split_rows(bf16* to, const float* x, index_t x_row, index_t rows, index_t tall, index_t steps) {
  const index_t step = PARTS * ENTRIES;
  for (index_t m = 0; m < tall * TILE; m++) {
    bf16* at = to + m / TILE * steps * step + m % TILE * STEP;
    for (index_t s = 0; s < steps; s++, at += step)
      if (m < rows) split(at, x + m * x_row + s * STEP);
      else
        for (index_t part = 0; part < PARTS; part++) _mm512_store_si512(at + part * ENTRIES, _mm512_setzero_si512());
  }
}

// A block of y, as far as y goes.
static void put(float* y, index_t y_row, const float* whole, index_t rows, index_t columns) {
  const auto first = [](index_t n) -> __mmask16 { return n >= TILE ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; };
  const __mmask16 left = first(columns), right = first(columns - TILE);
  for (index_t m = 0; m < rows; m++, y += y_row, whole += WIDE) {
    _mm512_mask_storeu_ps(y, left, _mm512_load_ps(whole));
    _mm512_mask_storeu_ps(y + TILE, right, _mm512_load_ps(whole + TILE));
  }
}

template <int PART, bool TWO>
static inline void add_product(const bf16* x, index_t next) {
  _tile_loadd(4, x + PART * ENTRIES, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (TWO) {
    _tile_loadd(5, x + next + PART * ENTRIES, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// One or two tiles of rows by a block of weights.
template <bool TWO>
static void block(float* y, index_t y_row, const bf16* x, const bf16* w, index_t steps, index_t rows, index_t columns) {
  const index_t step = PARTS * ENTRIES, next = steps * step;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (index_t s = 0; s < steps; s++, x += step, w += 2 * ENTRIES) {
    for (index_t c = 0; c < 2 * ENTRIES; c += 32) _mm_prefetch((const char*)(w + c) + AHEAD, _MM_HINT_T0);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + ENTRIES, 64);
    add_product<0, TWO>(x, next);
    add_product<1, TWO>(x, next);
    add_product<2, TWO>(x, next);
  }
  alignas(64) float whole[WIDE * WIDE];
  const bool fits = rows >= (TWO ? WIDE : TILE) && columns >= WIDE;
  float* to = fits ? y : whole;
  const index_t to_row = fits ? y_row : WIDE;
  _tile_stored(0, to, to_row * 4);
  _tile_stored(1, to + TILE, to_row * 4);
  if (TWO) {
    _tile_stored(2, to + TILE * to_row, to_row * 4);
    _tile_stored(3, to + TILE * to_row + TILE, to_row * 4);
  }
  if (fits) return;
  asm volatile("" ::: "memory");
  put(y, y_row, whole, std::min(rows, TWO ? WIDE : TILE), columns);
}

// What one thread does: some rows by some blocks of weights.
static void multiply(float* y, index_t y_row, const float* x, index_t x_row, const bf16* w, index_t rows, index_t steps,
                     index_t width, index_t first, index_t last) {
  static thread_local std::vector<bf16> memory;
  const index_t tile = steps * PARTS * ENTRIES, tall = (rows + TILE - 1) / TILE;
  const index_t group = std::max<index_t>(2, CACHE / tile / 2 * 2);  // tiles of rows, so that their parts stay in the cache
  const index_t needed = std::min(group, tall) * tile + 32;
  if ((index_t)memory.size() < needed) memory.resize(needed);
  bf16* parts = (bf16*)(((uintptr_t)memory.data() + 63) / 64 * 64);
  const Tiles mine;
  for (index_t g = 0; g < tall; g += group) {
    const index_t here = std::min(group, tall - g);
    split_rows(parts, x + g * TILE * x_row, x_row, rows - g * TILE, here, steps);
    asm volatile("" ::: "memory");  // compilers do not know that loading a tile reads
    for (index_t j = first; j < last; j++)
      for (index_t i = 0; i < here; i += 2) {
        float* to = y + (g + i) * TILE * y_row + j * WIDE;
        const bf16* weights = w + j * steps * 2 * ENTRIES;
        const index_t left = rows - (g + i) * TILE, columns = width - j * WIDE;
        if (here - i > 1) block<true>(to, y_row, parts + i * tile, weights, steps, left, columns);
        else block<false>(to, y_row, parts + i * tile, weights, steps, left, columns);
      }
  }
}

// y [rows, width] from x [rows, 32 steps] and weights as tiles of pairs [width / 32, steps, 2]; the last are padded with
// zeros. Of weights that a cache holds, threads share the rows first, so that none reads what another has just written, and
// then the columns; of others the columns, so that each weight is read once.
extern "C" void linear(float* y, const float* x, const void* w, index_t rows, index_t width, index_t steps, index_t y_row,
                       index_t x_row) {
  const index_t tall = (rows + WIDE - 1) / WIDE, blocks = (width + WIDE - 1) / WIDE;
#pragma omp parallel
  {
    const index_t me = omp_get_thread_num(), all = omp_get_num_threads();
    index_t down = blocks * steps * 2 * ENTRIES <= HELD ? std::min(all, tall) : 1;
    while (all % down) down--;
    const index_t across = all / down, r = me / across, c = me % across;
    const index_t top = tall * r / down * WIDE, end = std::min(rows, tall * (r + 1) / down * WIDE);
    multiply(y + top * y_row, y_row, x + top * x_row, x_row, (const bf16*)w, end - top, steps, width, blocks * c / across,
             blocks * (c + 1) / across);
  }
}

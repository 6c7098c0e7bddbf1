// y[row] += scale * B_s (A_s x[row]) for every row with an adapter, s being the row's slot; other rows are not touched.
//
// Rows come in blocks of one slot, so that a weight that was read serves several rows. One block is one task, and its
// accumulators stay in registers: 6 rows of 16 columns fill the twelve that AVX2 can spare, 6 of 32 those of AVX-512.
// It comes after vectors.cpp.

constexpr int MOST_SLICES = 16;
constexpr int64_t AHEAD = 16;  // inputs
#ifdef __AVX512F__
constexpr int WIDE = 2;  // vectors at once: more registers, more accumulators
#else
constexpr int WIDE = 1;
#endif

// One module's weights. A: [slots, in, slices, rank], its last two dimensions padded to whole vectors with zeros, or none
// where x already is what A makes.
// B of each slice: [slots, rank, out].
template <typename T>
struct Weights {
  const T* a;
  int64_t a_slot, a_in, in, slices, rank;
  const T* const* b;
  const int64_t *b_slot, *b_rank, *widths;
};

// Columns of `low = scale * x A`, a few vectors of them at once.
template <int ROWS, int VECTORS, typename T>
static inline void shrink(float* low, int64_t low_row, const T* const* xs, const T* a, const Weights<T>& w, float scale) {
  vec sums[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < w.in; i++) {
    const T* at = a + i * w.a_in;
    for (int v = 0; v < VECTORS; v++) {
      __builtin_prefetch(at + AHEAD * w.a_in + v * LANES);
      const vec weight = load(at + v * LANES);
      for (int n = 0; n < ROWS; n++) sums[n][v] += weight * number(xs[n][i]);
    }
  }
  for (int n = 0; n < ROWS; n++)
    for (int v = 0; v < VECTORS; v++) store(low + n * low_row + v * LANES, sums[n][v] * scale);
}

// `y += low B` for some columns of y.
template <int ROWS, int VECTORS, typename T>
static inline void expand(T* const* ys, int64_t c, const T* b, int64_t b_rank, const float* low, int64_t low_row,
                          int64_t rank) {
  vec sums[ROWS][VECTORS];
  for (int n = 0; n < ROWS; n++)
    for (int v = 0; v < VECTORS; v++) sums[n][v] = load(ys[n] + c + v * LANES);
  for (int64_t j = 0; j < rank; j++) {
    const T* at = b + j * b_rank;
    for (int v = 0; v < VECTORS; v++) {
      __builtin_prefetch(at + (VECTORS + v) * LANES);
      const vec weight = load(at + v * LANES);
      for (int n = 0; n < ROWS; n++) sums[n][v] += weight * low[n * low_row + j];
    }
  }
  for (int n = 0; n < ROWS; n++)
    for (int v = 0; v < VECTORS; v++) store(ys[n] + c + v * LANES, sums[n][v]);
}

template <int ROWS, typename T>
static void add(T* y, int64_t y_row, const T* x, int64_t x_row, const int64_t* rows, int64_t slot, const Weights<T>& w,
                float scale) {
  const int64_t columns = (w.slices * w.rank + LANES - 1) / LANES * LANES;
  float low[ROWS][columns];
  const T* xs[ROWS];
  for (int n = 0; n < ROWS; n++) xs[n] = x + rows[n] * x_row;
  if (w.a) {
    const T* down = w.a + slot * w.a_slot;
    int64_t c = 0;
    for (; c + WIDE * LANES <= columns; c += WIDE * LANES)
      shrink<ROWS, WIDE>(low[0] + c, columns, xs, down + c, w, scale);
    for (; c < columns; c += LANES) shrink<ROWS, 1>(low[0] + c, columns, xs, down + c, w, scale);
  } else {
    for (int n = 0; n < ROWS; n++)
      for (int64_t c = 0; c < w.slices * w.rank; c++) low[n][c] = number(xs[n][c]) * scale;
  }
  T* ys[ROWS];
  for (int n = 0; n < ROWS; n++) ys[n] = y + rows[n] * y_row;
  for (int64_t s = 0; s < w.slices; s++) {
    const T* matrix = w.b[s] + slot * w.b_slot[s];
    const int64_t stride = w.b_rank[s], width = w.widths[s], first = s * w.rank;
    int64_t c = 0;
    for (; c + WIDE * LANES <= width; c += WIDE * LANES)
      expand<ROWS, WIDE>(ys, c, matrix + c, stride, low[0] + first, columns, w.rank);
    for (; c + LANES <= width; c += LANES)
      expand<ROWS, 1>(ys, c, matrix + c, stride, low[0] + first, columns, w.rank);
    for (; c < width; c++)
      for (int n = 0; n < ROWS; n++) {
        float sum = number(ys[n][c]);
        for (int64_t j = 0; j < w.rank; j++) sum += number(matrix[j * stride + c]) * low[n][first + j];
        put(ys[n] + c, sum);
      }
    for (int n = 0; n < ROWS; n++) ys[n] += width;
  }
}

// blocks: their number, then (slot, first place in order, rows) of each; order: the rows of all blocks.
template <typename T>
static void add_all(T* y, int64_t y_row, const T* x, int64_t x_row, const int64_t* order, const int64_t* blocks,
                    const Weights<T>& w, float scale) {
  const int64_t count = blocks[0];
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t t = 0; t < count; t++) {
    const int64_t* block = blocks + 1 + 3 * t;
    const int64_t* rows = order + block[1];
    switch (block[2]) {
      case 1: add<1>(y, y_row, x, x_row, rows, block[0], w, scale); break;
      case 2: add<2>(y, y_row, x, x_row, rows, block[0], w, scale); break;
      case 3: add<3>(y, y_row, x, x_row, rows, block[0], w, scale); break;
      case 4: add<4>(y, y_row, x, x_row, rows, block[0], w, scale); break;
      case 5: add<5>(y, y_row, x, x_row, rows, block[0], w, scale); break;
      case 6: add<6>(y, y_row, x, x_row, rows, block[0], w, scale); break;
    }
  }
}

// shape: of A a slot and an input; inputs, slices, rank; then for each slice the address of B, what a slot and a rank of
// it take, and its width. Distances, those of rows included, are in elements.
template <typename T>
static void add_from(void* y, const void* x, int64_t y_row, int64_t x_row, const int64_t* order, const int64_t* blocks,
                     const void* a, const int64_t* shape, float scale) {
  const T* b[MOST_SLICES];
  const int64_t slices = shape[3], *b_slot = shape + 5 + slices;
  for (int64_t s = 0; s < slices; s++) b[s] = (const T*)shape[5 + s];
  const Weights<T> weights = {(const T*)a, shape[0], shape[1], shape[2], slices, shape[4],
                              b, b_slot, b_slot + slices, b_slot + 2 * slices};
  add_all<T>((T*)y, y_row, (const T*)x, x_row, order, blocks, weights, scale);
}

extern "C" void add_float32(void* y, const void* x, int64_t y_row, int64_t x_row, const int64_t* order,
                            const int64_t* blocks, const void* a, const int64_t* shape, float scale) {
  add_from<float>(y, x, y_row, x_row, order, blocks, a, shape, scale);
}

extern "C" void add_bfloat16(void* y, const void* x, int64_t y_row, int64_t x_row, const int64_t* order,
                             const int64_t* blocks, const void* a, const int64_t* shape, float scale) {
  add_from<bfloat16>(y, x, y_row, x_row, order, blocks, a, shape, scale);
}

// What code for AMX needs before anything else: the shape of a tile, and tiles that are this thread's while it uses them.
//
// A tile is 16 rows of 64 bytes. Products are of a tile [16, 32] and a tile of pairs, [16, 16] words, whose word (i, n) holds
// the entries (2i, n) and (2i + 1, n) of a [32, 16] matrix. Sums are float32; what is multiplied is bfloat16.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

typedef int64_t index_t;
typedef uint16_t bf16;

constexpr index_t TILE = 16;
constexpr index_t STEP = 32;  // entries of a row of a tile, over which a product sums

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int t = 0; t < 8; t++) bytes[t] = 64, rows[t] = TILE;
  }
};

// This thread's tiles, while it lives; what was set before is set again. Not by intrinsics: GCC's say that they touch the
// first eight bytes of a configuration, and the rest may then never be written.
struct Tiles {
  TileConfig before;
  Tiles() {
    const TileConfig mine;
    asm volatile("sttilecfg %0" : "=m"(before));
    asm volatile("ldtilecfg %0" ::"m"(mine));
  }
  ~Tiles() {
    if (before.palette) asm volatile("ldtilecfg %0" ::"m"(before));
    else asm volatile("tilerelease");
  }
  Tiles(const Tiles&) = delete;
};

// Asks the system to let this process use tiles: 0 when it does.
extern "C" int tiles_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (int)syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

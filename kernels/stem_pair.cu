// The first two 3 x 3 convolutions of a network, and the 2 x 2 max pool behind them where there is one; the
// maps between them never stored.
//
//   m[b, y, z, j] = FP16(max(u[j] * (sum over r, s, c of x[b, y + r - 1, z + s - 1, c] v[j, r, s, c])
//       + t[j], 0)), zero outside the map
//   n[b, y, z, k] = FP16(max(scale[k] * (sum over r, s, j of m[b, y + r - 1, z + s - 1, j] w[k, r, s, j])
//       + bias[k], 0))                                                        r, s < 3
//   y = n, or y[b, p, q, k] = largest of n[b, 2 p + r, 2 q + s, k]   r, s < 2
//
// x [B, H, W, pitch] FP16, the first C <= 8 of each pitch read, zero outside the map; v [J, 3, 3, 8] and
// w [K, 3, 3, J'] FP16, J' = J rounded up to 8, zero-filled, J, K <= 64; u, t [J], scale, bias [K] f32; y
// [B, H, W, pitch] FP16, or [B, H / 2, W / 2, pitch] FP16 and, for a graph output, f32. The bits are those of
// `conv2d.cu` twice, the second time with CFG_POOL where it pools: the same steps of 16 columns in the
// same order, one rounding to FP16 each.
//
// Block: 16 x 16 positions of n, hence 18 x 18 of m and 20 x 20 pixels; 8 warps of 32 rows x 64 filters. m is
// made in three passes of 128 positions.
// Grid: B ceil(H / 16) ceil(W / 16), of H / 2 and W / 2 by 8 with a pool.
// Dynamic shared memory: 60,480 bytes: pixels, m (chunk c of position i at c ^ (i mod 8)), a ring of 3
// slices, first the whole of v, then of w; n lies where m was.
// 2 B H W (9 C J + 9 J K) FLOP, of which the first product is done 336 / 256 times (the edges of m, and what
// fills its last fragment) on 8 channels for C. At least 2 (B H W 8 + 9 J 8 + 9 J K + B P Q K) bytes; m,
// written and read, would be 4 B H W J more.
// Roofline at 224 x 224 and 64 filters with a pool: 4.5 GFLOP done for 2.4 MB an image, 1,900 FLOP a byte:
// bound by arithmetic. Apart, 4.3 GFLOP and 15.2 MB, of which the first product's 7.2 MB bound it by memory.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Simonyan & Zisserman 2015 (arXiv:1409.1556), conv1; Chetlur et al. 2014 (arXiv:1410.0759).
#include "stem.cuh"

typedef Resident<256, 8> T;
typedef Resident<128, 8> First;  // one pass of m

enum {
  KERNEL_SIDE = 3,
  TAPS = KERNEL_SIDE * KERNEL_SIDE,
  SIDE = 16,         // of n
  HALO = SIDE + 2,   // of m
  MAP = HALO * HALO,
  MAP_BYTES = MAP * MAX_FILTERS * 2,
  PASSES = (MAP + First::BM - 1) / First::BM,
};

typedef PixelTile<HALO + 2, HALO + 3, 1> Pixels;

struct StemPairParams {
  i32 rows;
  i32 h, w, c;  // of x
  i32 j, k;     // filters
  i32 pitch;    // of x
  i32 pool;     // whether y is the largest of each 2 x 2 square of n
  const u16* x;
  const u16* first_weight;
  const float* first_scale;
  const float* first_bias;
  const u16* weight;
  Epilogue epilogue;
};

// Of a chunk of m.
DEV u32 map_offset(i32 position, i32 chunk) {
  return position * MAX_FILTERS * 2 + ((chunk ^ (position & 7)) << 4);
}

// The part of x, m and n a block works on: its first position of n.
struct Corner {
  size_t image;
  i32 y, z;
};

// The first product, into m.
struct FirstMap {
  const StemPairParams& a;
  const Corner& corner;
  u32 pixels, map, weights;

  DEV void make() const {
    NO_UNROLL for (i32 pass = 0; pass < PASSES; pass++) {
      // Of the last pass only some warps have rows.
      if (pass * First::BM + threadIdx.x / 32 * First::WARP_M >= MAP) break;
      PixelRows<First, Pixels, KERNEL_SIDE, HALO> rows(pixels, pass * First::BM, MAP);
      First::Sums sums;
      clear<First>(sums);
      NO_UNROLL for (i32 slice = 0; slice < (TAPS * CHUNK + BK - 1) / BK; slice++)
        multiply_slice<First>(sums, rows, weights + slice * First::STAGE_BYTES);
      keep(sums, pass * First::BM);
    }
  }

  // Outside the map it is padding, which the second product must see as zeros.
  DEV void keep(const First::Sums& sums, i32 first) const {
    UNROLL for (i32 j = 0; j < First::FRAGS_N; j++) {
      const i32 n = First::column(j);
      const bool in0 = n < a.j, in1 = n + 1 < a.j;
      const float scale0 = in0 ? a.first_scale[n] : 0.f, scale1 = in1 ? a.first_scale[n + 1] : 0.f;
      const float bias0 = in0 ? a.first_bias[n] : 0.f, bias1 = in1 ? a.first_bias[n + 1] : 0.f;
      UNROLL for (i32 half = 0; half < 2; half++) {
        const i32 position = first + First::row(0, half);
        if (position >= MAP) continue;
        const i32 y = corner.y - 1 + position / HALO, z = corner.z - 1 + position % HALO;
        const bool inside = (u32)y < (u32)a.h && (u32)z < (u32)a.w;
        const float v0 = activate<ACT_RELU>(sums[0][j][2 * half] * scale0 + bias0);
        const float v1 = activate<ACT_RELU>(sums[0][j][2 * half + 1] * scale1 + bias1);
        store_shared4(map + map_offset(position, n / CHUNK) + n % CHUNK * 2,
                      inside ? pack_halves(v0, v1) : 0);
      }
    }
  }
};

// The left operand of the second product: rows of m under the taps.
struct MapRows {
  u32 map, zeros;
  i32 first[T::FRAGS_M];  // this lane's positions of m under tap 0
  i32 chunks;             // J' / 8
  i32 r, s, chunk;        // this lane's tap and channels

  DEV MapRows(u32 map, u32 zeros, i32 j) : map(map), zeros(zeros), r(0), s(0) {
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++) {
      const i32 row = threadIdx.x / 32 % T::WARPS_M * T::WARP_M + i * 16 + threadIdx.x % 16;
      first[i] = row / SIDE * HALO + row % SIDE;
    }
    chunks = (j + CHUNK - 1) / CHUNK;
    chunk = threadIdx.x % 32 / 16;
    settle();
  }

  // Carries channels beyond the last into the next tap.
  DEV void settle() {
    while (chunk >= chunks) {
      chunk -= chunks;
      if (++s == KERNEL_SIDE) {
        s = 0;
        r++;
      }
    }
  }

  DEV u32 address(i32 fragment) const {
    return r < KERNEL_SIDE ? map + map_offset(first[fragment] + r * HALO + s, chunk) : zeros;
  }

  DEV void next() {
    chunk += 2;
    settle();
  }

  // Nothing of it passes through the ring.
  DEV void copy(u32) {}
  DEV void arrived(u32) {}
  DEV MapRows& rows(u32) { return *this; }
};

// Stores the staged tile of n as it is.
DEV void store_map(const StemPairParams& a, const Corner& corner, u32 shared) {
  enum { PER_PLACE = T::BN / CHUNK };
  NO_UNROLL for (i32 i = threadIdx.x; i < T::BM * PER_PLACE; i += T::THREADS) {
    const i32 row = i / PER_PLACE, channel = i % PER_PLACE * CHUNK;
    const i32 y = corner.y + row / SIDE, z = corner.z + row % SIDE, count = min(a.k - channel, (i32)CHUNK);
    if (y >= a.h || z >= a.w || count <= 0) continue;
    float v[CHUNK];
    unpack8(load_shared16(shared + staged<T>(row, channel)), v);
    store8(a.epilogue.out, (corner.image * a.h + y) * a.w + z, channel, count, v);
  }
}

KERNEL BOUNDS(T::THREADS, BLOCKS) stem_pair(PARAM StemPairParams a) {
  const u32 pixels = shared_address(dynamic_shared), map = pixels + Pixels::BYTES;
  const u32 ring = map + MAP_BYTES;
  // A last odd row or column that no window covers takes no block.
  const i32 h = a.pool ? a.h / 2 * 2 : a.h, w = a.pool ? a.w / 2 * 2 : a.w;
  const i32 down = (h + SIDE - 1) / SIDE, across = (w + SIDE - 1) / SIDE;
  const i32 y0 = blockIdx.x / across % down * SIDE, z0 = blockIdx.x % across * SIDE;
  const Corner corner = {blockIdx.x / across / down, y0, z0};

  Pixels::copy(pixels, a.x + corner.image * a.h * a.w * a.pitch, a.pitch, a.h, a.w, a.c, y0 - 2, z0 - 2);
  DenseRows<First, First::B_PASSES> first_weights(a.first_weight, TAPS * CHUNK, 0, a.j, TAPS * CHUNK);
  UNROLL for (i32 slice = 0; slice < First::STAGES; slice++)
    first_weights.copy(ring + slice * First::STAGE_BYTES);
  copy_commit();
  copy_wait<0>();
  barrier_block();
  const FirstMap first = {a, corner, pixels, map, ring};
  first.make();
  // m is whole, and nobody still reads v.
  barrier_block();

  const i32 columns = TAPS * ((a.j + CHUNK - 1) / CHUNK * CHUNK);
  MapRows rows(map, pixels + Pixels::zeros(), a.j);
  DenseRows<T, T::B_PASSES> weights(a.weight, columns, 0, a.k, columns);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, ring, (columns + BK - 1) / BK, rows, weights);

  const InPlace place = {a.k};
  stage_result<T, ACT_RELU, false, false>(sums, a.epilogue, map, 0, 0, 0, place);
  barrier_block();
  if (a.pool) {
    const Pooling to = {corner.image, y0, z0, a.h, a.w, y0 / 2, z0 / 2, a.h / 2, a.w / 2, a.k};
    store_largest<T, 2, SIDE, SIDE / 2, SIDE / 2>(to, a.epilogue.out, map);
  } else {
    store_map(a, corner, map);
  }
}

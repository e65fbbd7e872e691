// The first convolution of a residual or dense network and the max pool behind it, the map between them
// never stored.
//
//   m[b, y, z, k] = FP16(max(scale[k] * (sum over r, s, c of
//       x[b, 2 y + r - 3, 2 z + s - 3, c] w[k, r, s, c]) + bias[k], 0))      r, s < 7
//   y[b, p, q, k] = largest of m[b, 2 p + r - pad, 2 q + s - pad, k]         r, s < 3
//
// x [B, H, W, pitch] FP16, the first C <= 8 of each pitch read, zero outside the map; w [K, 7, 7, 8] FP16,
// zero-filled beyond C, K <= 64; scale, bias [K] f32; m [B, H', W', K]; y [B, P, Q, pitch] as FP16 and, for
// a graph output, f32. What lies outside m never wins, NaN always does. The bits are those of
// `conv2d.cu` followed by `max_pool`: the same steps of 16 columns in the same order, one rounding to FP16.
//
// Block: 7 x 8 positions of y, hence 15 x 17 of m, 255 rows of 256 in the product, and 35 x 39 pixels; 8
// warps of 32 rows x 64 filters. Grid: B ceil(P / 7) ceil(Q / 8).
// Dynamic shared memory: 36,864 bytes: pixels and a ring of 3 slices of w, then m.
// 2 B H' W' K 49 C FLOP; done are 256 / 224 as many (the edges of m twice, a row that fills the product) on
// 8 channels for C. At least 2 (B H W 8 + 49 K 8 + B P Q K) bytes; m, written and read, would be
// 4 B H' W' K more.
// Roofline at 224 x 224 and 64 filters: 0.76 GFLOP done for 1.2 MB an image, 630 FLOP a byte: bound by
// arithmetic. Apart, 0.67 GFLOP and 4.4 MB, 2.0 of them moved by a pool that multiplies nothing.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// He et al. 2016 (arXiv:1512.03385), table 1, conv1; Chetlur et al. 2014 (arXiv:1410.0759).
#include "stem.cuh"

typedef Resident<256, 8> T;

enum {
  KERNEL_SIDE = 7,
  STRIDE = 2,
  PAD = 3,
  ROWS = 7,  // of y
  COLUMNS = 8,
  HEIGHT = 2 * ROWS + 1,  // of m
  WIDTH = 2 * COLUMNS + 1,
};

typedef PixelTile<(HEIGHT - 1) * STRIDE + KERNEL_SIDE, (WIDTH - 1) * STRIDE + KERNEL_SIDE + 1, STRIDE>
    Pixels;

struct StemParams {
  i32 rows;
  i32 h, w, c;       // of x
  i32 map_h, map_w;  // H', W'
  i32 p, q, k;       // of y
  i32 pad;           // of the pool
  i32 pitch;         // of x
  i32 unused;
  const u16* x;
  const u16* weight;
  Epilogue epilogue;
};

KERNEL BOUNDS(T::THREADS, BLOCKS) stem(PARAM StemParams a) {
  const u32 shared = shared_address(dynamic_shared), ring = shared + Pixels::BYTES;
  const i32 down = (a.p + ROWS - 1) / ROWS, across = (a.q + COLUMNS - 1) / COLUMNS;
  const i32 p0 = blockIdx.x / across % down * ROWS, q0 = blockIdx.x % across * COLUMNS;
  const size_t image = blockIdx.x / across / down;
  const i32 top = 2 * p0 - a.pad, left = 2 * q0 - a.pad;

  Pixels::copy(shared, a.x + image * a.h * a.w * a.pitch, a.pitch, a.h, a.w, a.c, top * STRIDE - PAD,
               left * STRIDE - PAD);
  copy_commit();
  const i32 columns = KERNEL_SIDE * KERNEL_SIDE * CHUNK;
  PixelRows<T, Pixels, KERNEL_SIDE, WIDTH> pixels(shared, 0, HEIGHT * WIDTH);
  DenseRows<T, T::B_PASSES> weights(a.weight, columns, 0, a.k, columns);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, ring, (columns + BK - 1) / BK, pixels, weights);

  const InPlace place = {a.k};
  stage_result<T, ACT_RELU, false, false>(sums, a.epilogue, shared, 0, 0, 0, place);
  barrier_block();
  const Pooling to = {image, top, left, a.map_h, a.map_w, p0, q0, a.p, a.q, a.k};
  store_largest<T, 3, WIDTH, ROWS, COLUMNS>(to, a.epilogue.out, shared);
}

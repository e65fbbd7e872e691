// Transposed 2x2 convolution with stride 2: a matrix product whose result is spread over the map.
//
//   y[b, 2 i + r, 2 j + s, k] = act(scale[k] * (sum over c of x[b, i, j, c] w[k, r, s, c])
//       + bias[k] + residual[b, 2 i + r, 2 j + s, k])
//
// x [B, H, W, pitch] FP16, the first C of each pitch read; w [2, 2, K', C'] FP16 in order r, s, k;
// K' and C' are K and C rounded up to 8 and zero-filled; scale, bias [4 K'] f32, repeated for each
// tap; y [B, 2 H, 2 W, pitch] as FP16 and, for a graph output, f32. Windows do not overlap, so
// nothing is added twice. K' is a multiple of 8, so that a chunk of 8 columns belongs to one tap.
//
// Block, grid and shared memory as in gemm.cu with B H W positions and 4 K' filters.
// 8 B H W K C FLOP; 2 (B H W C + 4 K C + 4 B H W K) bytes.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Dumoulin and Visin 2016 (arXiv:1603.07285), section 4.
#include "epilogue.cuh"

typedef Tile<CFG_TILE_M, CFG_TILE_N, CFG_WARPS_M, CFG_WARPS_N, CFG_STAGES> T;

struct TransposedParams {
  i32 rows;
  i32 h, w, c;   // of x
  i32 k;         // of y
  i32 k_padded;  // K'
  i32 pitch;     // of x
  i32 weight_pitch;  // of w: C'
  const u16* x;
  const u16* weight;
  Epilogue epilogue;
};

// Element [m, n] of the product is channel n mod K' under tap n / K' of position m.
struct Spread {
  i32 h, w, k, k_padded;

  DEV size_t position(i32 m, i32 n) const {
    const i32 tap = n / k_padded, column = m % w;
    return ((size_t)(m / w) * 2 + tap / 2) * (2 * w) + column * 2 + tap % 2;
  }
  DEV i32 channel(i32 n) const { return n % k_padded; }
  DEV i32 room(i32 n) const { return n < 4 * k_padded ? k - n % k_padded : 0; }
};

KERNEL BOUNDS(T::THREADS, CFG_BLOCKS) conv_transpose(PARAM TransposedParams p) {
  const u32 shared = shared_address(dynamic_shared);
  const i32 m = p.rows * p.h * p.w, n = 4 * p.k_padded, strips = (n + T::BN - 1) / T::BN;
  const i32 m0 = blockIdx.x / strips * T::BM, n0 = blockIdx.x % strips * T::BN;

  DenseRows<T, T::A_PASSES> a(p.x, p.pitch, m0, m, p.c);
  DenseRows<T, T::B_PASSES> b(p.weight, p.weight_pitch, n0, n, p.weight_pitch);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, shared, (p.weight_pitch + BK - 1) / BK, a, b);
  const Spread place = {p.h, p.w, p.k, p.k_padded};
  finish_at<T, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, shared, m0, n0, m, place);
}

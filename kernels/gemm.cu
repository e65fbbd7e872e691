// Matrix product with an epilogue: fully connected layers over feature vectors and tokens.
//
//   y[m, k] = act(scale[k] * (sum over c of x[m, c] w[k, c]) + bias[k] + residual[m, k])
//
// x [M, pitch] FP16, the first C of each pitch read; w [K, C'] FP16, C' = C rounded up to 8 and
// zero-filled; scale, bias [K] f32; y as FP16 and, for a graph output, f32. M = rows * positions.
//
// Block: one CFG_TILE_M x CFG_TILE_N tile of y, CFG_WARPS_M x CFG_WARPS_N warps, each a rectangle of it.
// Grid: ceil(M / CFG_TILE_M) * ceil(K / CFG_TILE_N), the tiles of one strip of x next to each other.
// Dynamic shared memory: max(CFG_STAGES * (CFG_TILE_M + CFG_TILE_N) * 64, CFG_TILE_M * (CFG_TILE_N + 8) * 2) bytes.
// 2 M K C FLOP; 2 (M C + K C + M K) bytes (+ 2 M K with a residual): compute-bound from about
// M = K = C = 800 on, memory-bound below.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// After the implicit-GEMM formulation of Chetlur et al. 2014 (arXiv:1410.0759) with R = S = 1.
#include "epilogue.cuh"

typedef Tile<CFG_TILE_M, CFG_TILE_N, CFG_WARPS_M, CFG_WARPS_N, CFG_STAGES> T;

struct GemmParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c, k;
  i32 pitch;         // of x
  i32 weight_pitch;  // of w: C'
  const u16* x;
  const u16* weight;
  Epilogue epilogue;
};

KERNEL BOUNDS(T::THREADS, CFG_BLOCKS) gemm(PARAM GemmParams p) {
  const u32 shared = shared_address(dynamic_shared);
  const i32 m = p.rows * p.positions, strips = (p.k + T::BN - 1) / T::BN;
  const i32 m0 = blockIdx.x / strips * T::BM, n0 = blockIdx.x % strips * T::BN;

  DenseRows<T, T::A_PASSES> a(p.x, p.pitch, m0, m, p.c);
  DenseRows<T, T::B_PASSES> b(p.weight, p.weight_pitch, n0, p.k, p.weight_pitch);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, shared, (p.weight_pitch + BK - 1) / BK, a, b);
  finish<T, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, shared, m0, n0, m, p.k);
}

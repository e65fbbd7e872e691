// 1x1 convolution of a pre-activated map: the layers of a dense block.
//
//   y[m, k] = act(scale[k] * (sum over c of z[m, c] w[k, c]) + bias[k] + residual[m, k])
//   z[m, c] = relu(x[m, c] x_scale[c] + x_bias[c]) rounded to FP16
//
// x [M, pitch] FP16, the first C of each pitch read; w [K, C'] FP16, C' = C rounded up to 8 and
// zero-filled; x_scale, x_bias [C''] f32, C'' = C rounded up to 32 and zero-filled; y as FP16 and,
// for a graph output, f32. M = rows * positions. z is never written: a thread activates the chunks
// of a slice that it copied itself, in shared memory, before the barrier that hands the slice to
// all. The bits are those of `affine` followed by `gemm`.
//
// Block, grid and shared memory as in gemm.cu.
// 2 M K C FLOP; 2 (M C + K C + M K) bytes: memory-bound for the narrow layers of DenseNet.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Huang et al. 2017 (arXiv:1608.06993).
#include "epilogue.cuh"

typedef Tile<CFG_TILE_M, CFG_TILE_N, CFG_WARPS_M, CFG_WARPS_N, CFG_STAGES> T;

struct PreactParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c, k;
  i32 pitch;         // of x
  i32 weight_pitch;  // of w: C'
  const u16* x;
  const u16* weight;
  const float* x_scale;
  const float* x_bias;
  Epilogue epilogue;
};

// Rows of x that are activated when they arrive.
struct ActivatedRows : DenseRows<T, T::A_PASSES> {
  const float* scale;  // of this thread's chunk of the next slice to arrive
  const float* bias;

  DEV ActivatedRows(const PreactParams& p, i32 first, i32 rows)
      : DenseRows<T, T::A_PASSES>(p.x, p.pitch, first, rows, p.c) {
    scale = p.x_scale + threadIdx.x % CHUNKS * CHUNK;
    bias = p.x_bias + threadIdx.x % CHUNKS * CHUNK;
  }

  DEV void arrived(u32 slice) {
    const i32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    UNROLL for (i32 i = 0; i < T::A_PASSES; i++) {
      const u32 at = slice + swizzled(row + i * T::PASS_ROWS, chunk);
      float v[CHUNK];
      unpack8(load_shared16(at), v);
      UNROLL for (i32 c = 0; c < CHUNK; c++) v[c] = affine<ACT_RELU>(v[c], scale[c], bias[c]);
      store_shared16(at, pack8(v));
    }
    scale += BK;
    bias += BK;
  }
};

KERNEL BOUNDS(T::THREADS, CFG_BLOCKS) preact_conv1x1(PARAM PreactParams p) {
  const u32 shared = shared_address(dynamic_shared);
  const i32 m = p.rows * p.positions, strips = (p.k + T::BN - 1) / T::BN;
  const i32 m0 = blockIdx.x / strips * T::BM, n0 = blockIdx.x % strips * T::BN;

  ActivatedRows a(p, m0, m);
  DenseRows<T, T::B_PASSES> b(p.weight, p.weight_pitch, n0, p.k, p.weight_pitch);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, shared, (p.weight_pitch + BK - 1) / BK, a, b);
  finish<T, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, shared, m0, n0, m, p.k);
}

// Matrix product with an epilogue on Hopper: gemm.cu by bulk tensor copies and warpgroup products.
//
//   y[m, k] = act(scale[k] * (sum over c of x[m, c] w[k, c]) + bias[k] + residual[m, k])
//
// Shapes and layouts as gemm.cu. x and w are read through tensor maps of boxes 64 x 128 and
// 64 x CFG_TILE_N in 128-byte swizzle; columns beyond C come as zeros.
//
// Block: 384 threads, persistent over tiles of 128 x CFG_TILE_N: one thread copies, two warpgroups
// multiply (see ring.cuh). Grid: at most one block a multiprocessor.
// Dynamic shared memory: CFG_STAGES * (128 + CFG_TILE_N) * 128 + 128 * (CFG_TILE_N * 2 + 16)
// + CFG_STAGES * 16 bytes.
// 2 M K C FLOP; 2 (M C + K C + M K) bytes: compute-bound from about M = K = C = 800 on.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// PTX ISA, chapters on cp.async.bulk.tensor, mbarrier and wgmma.
#include "sm90/ring.cuh"

typedef WideTile<CFG_TILE_N, CFG_STAGES> W;

struct WideGemmParams {
  i32 rows;
  i32 positions;  // of one row
  i32 k;
  i32 columns;  // C'
  i32 unused[12];
  TensorMap x;
  TensorMap weight;
  Epilogue epilogue;
  u64 unused_end;
};

DEV void copy_tiles(const WideGemmParams& p, const Ring<W>& ring, i32 tiles, i32 strips) {
  Turn<W> turn;
  NO_UNROLL for (i32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const i32 m0 = tile / strips * W::BM, n0 = tile % strips * W::BN;
    NO_UNROLL for (i32 c = 0; c < p.columns; c += SLICE) {
      mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
      mbarrier_arrive_expect(ring.full(turn.stage), W::STAGE);
      tensor_copy(ring.a(turn.stage), &p.x, ring.full(turn.stage), c, m0);
      tensor_copy(ring.b(turn.stage), &p.weight, ring.full(turn.stage), c, n0);
      turn.next();
    }
  }
}

KERNEL BOUNDS(W::BLOCK, 1) gemm_sm90(PARAM WideGemmParams p) {
  const Ring<W> ring{shared_address(dynamic_shared)};
  const i32 m = p.rows * p.positions, strips = (p.k + W::BN - 1) / W::BN;
  const i32 tiles = (m + W::BM - 1) / W::BM * strips;
  ring.init(1);
  if (threadIdx.x < COPIERS) {
    registers_shrink<40>();
    if (threadIdx.x == 0) copy_tiles(p, ring, tiles, strips);
  } else {
    registers_grow<232>();
    Turn<W> turn;
    NO_UNROLL for (i32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      W::Sums sums;
      clear<W>(sums);
      multiply_full<W>(sums, ring, turn, (p.columns + SLICE - 1) / SLICE);
      finish<W, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, ring.staged(), tile / strips * W::BM,
                                       tile % strips * W::BN, m, p.k);
      W::sync();
    }
  }
}

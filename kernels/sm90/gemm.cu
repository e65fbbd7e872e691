// Matrix product with an epilogue on Hopper: gemm.cu by bulk tensor copies and warpgroup products.
//
//   y[m, k] = act(scale[k] * (sum over c of x[m, c] w[k, c]) + bias[k] + residual[m, k])
//
// Shapes and layouts as gemm.cu. x [M, C] is read through a tensor map in boxes of 128 x 64, w, the
// residual and y through those of ring.cuh; columns beyond C come as zeros. A residual or a y that
// starts between two 16-byte chunks has no map: it is read from, or written to, global memory by the
// multiplying threads.
//
// Block: 384 threads, persistent over tiles of 128 x CFG_TILE_N: one lane loads, one moves staged
// tiles, two warpgroups multiply (see ring.cuh). Grid: at most one block a multiprocessor, in clusters
// of one or two.
// Dynamic shared memory: CFG_STAGES * (128 + CFG_TILE_N) * 128 bytes of stages, 128 * CFG_TILE_N * 2
// for the staged tile of each team (two teams up to CFG_TILE_N = 128, else one), and of barriers
// 16 for each stage and 24 for each team.
// 2 M K C FLOP; 2 (M C + K C + M K) bytes (+ 2 M K with a residual): compute-bound from about
// M = K = C = 800 on.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// PTX ISA, chapters on cp.async.bulk.tensor, mbarrier and wgmma.
#include "sm90/roles.cuh"

typedef WideTile<CFG_TILE_N, CFG_STAGES> W;

struct WideGemmParams {
  Product product;
  TensorMap x;
};

// Rows of a matrix.
struct Rows {
  const TensorMap& x;
  i32 m0;

  enum { BYTES = W::A_SLICE };
  DEV explicit Rows(const TensorMap& x) : x(x), m0(0) { }
  DEV void start(i32 m) { m0 = m; }
  DEV void copy(u32 to, u32 barrier, i32, i32 c) { copy_box(to, &x, barrier, c, m0); }
};

KERNEL BOUNDS(384, 1) gemm_sm90(PARAM WideGemmParams p) {
  const Ring<W> ring{shared_address(dynamic_shared)};
  ring.init(1);
  if (threadIdx.x < GROUP) {
    registers_shrink<40>();
    load_and_move<W, CFG_RESIDUAL>(p.product, ring, Rows(p.x));
  } else {
    registers_grow<232>();
    multiply_tiles<W, CFG_ACT, CFG_RESIDUAL>(p.product, ring);
  }
  // A block of a cluster writes to the other's barriers and stages: neither may leave before both are done.
  barrier_cluster();
}

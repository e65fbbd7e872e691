// Convolution as an implicit matrix product on Hopper, its left operand cut out by the copy engine.
//
//   y[b, p, q, k] = act(scale[k] * (sum over r, s, c of
//       x[b, p stride + r dilation - pad, q stride + s dilation - pad, c] w[k, r, s, c])
//       + bias[k] + residual[b, p, q, k])
//
// Shapes and layouts as conv2d.cu; maps as ring.cuh. x [B, H, W, C] is read through a tensor map in
// im2col mode: its bounding box runs, in steps of the stride, over the input pixels under tap (0, 0),
// from -pad to the last, which is pad - (taps - 1) dilation beyond the edge; a copy takes 128 of them in
// the order of y, moved on by r and s times the dilation, and 64 channels. Pixels outside the map and
// channels beyond C come as zeros. Columns run over c in whole slices, then s, then r.
// A window the maps cannot hold, or few channels, go to gather.cu.
//
// Block: 384 threads, persistent over tiles of 128 positions x CFG_TILE_N filters: one lane loads, one
// moves staged tiles, two warpgroups multiply (see ring.cuh). Grid: at most one block a
// multiprocessor, in clusters of one or two.
// Dynamic shared memory: CFG_STAGES * (128 + CFG_TILE_N) * 128 bytes of stages, 128 * CFG_TILE_N * 2
// for the staged tile of each team (two teams up to CFG_TILE_N = 128, else one), and of barriers
// 16 for each stage and 24 for each team.
// 2 B P Q K R S C FLOP; at least 2 (B H W C + K R S C + B P Q K) bytes (+ 2 B P Q K with a residual).
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Chetlur et al. 2014 (arXiv:1410.0759); PTX ISA, chapters on cp.async.bulk.tensor (im2col mode),
// mbarrier and wgmma; CUDA driver API, cuTensorMapEncodeIm2col.
#include "sm90/roles.cuh"

typedef WideTile<CFG_TILE_N, CFG_STAGES> W;

struct WideConv2dParams {
  Product product;
  TensorMap x;
  i32 p, q;  // of y
  i32 kernel_h, kernel_w;
  i32 stride_h, stride_w;
  i32 pad_h, pad_w;
  i32 dilation_h, dilation_w;
  i32 unused[6];
};

// The input pixels under the taps of a tile's positions.
struct Pixels {
  const WideConv2dParams& p;
  i32 w, h, n;  // under tap (0, 0) of the first position

  enum { BYTES = W::A_SLICE };
  DEV explicit Pixels(const WideConv2dParams& p) : p(p), w(0), h(0), n(0) { }
  DEV void start(i32 m0) {
    const i32 line = m0 / p.q;
    w = m0 % p.q * p.stride_w - p.pad_w;
    h = line % p.p * p.stride_h - p.pad_h;
    n = line / p.p;
  }
  DEV void copy(u32 to, u32 barrier, i32 tap, i32 c) {
    const i32 r = tap / p.kernel_w, s = tap % p.kernel_w;
    copy_pixels(to, &p.x, barrier, c, w, h, n, s * p.dilation_w, r * p.dilation_h);
  }
};

KERNEL BOUNDS(384, 1) conv2d_sm90(PARAM WideConv2dParams p) {
  const Ring<W> ring{shared_address(dynamic_shared)};
  ring.init(1);
  if (threadIdx.x < GROUP) {
    registers_shrink<40>();
    load_and_move<W, CFG_RESIDUAL>(p.product, ring, Pixels(p));
  } else {
    registers_grow<232>();
    multiply_tiles<W, CFG_ACT, CFG_RESIDUAL>(p.product, ring);
  }
  // A block of a cluster writes to the other's barriers and stages: neither may leave before both are done.
  barrier_cluster();
}

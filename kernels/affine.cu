// A folded norm and an activation, channel by channel.
//
//   y[m, c] = act(x[m, c] scale[c] + bias[c])
//
// x [M, pitch] FP16, M = rows * positions; scale, bias [C] f32; y as FP16 and, for a graph output,
// f32.
//
// Thread: 8 channels of one position. Block: 256 threads. Grid: ceil(M ceil(C / 8) / 256). No shared
// memory. 2 M C FLOP; 4 M C bytes: memory-bound. Exact up to one rounding, without an activation.
// Ioffe and Szegedy 2015 (arXiv:1502.03167), with running statistics.
#include "sink.cuh"

struct AffineParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c;
  i32 pitch;  // of x
  const u16* x;
  const float* scale;
  const float* bias;
  Sink out;
};

KERNEL BOUNDS(256, 1) affine_map(PARAM AffineParams p) {
  const u32 groups = (p.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const size_t position = i / groups;
  if (position >= (size_t)(p.rows * p.positions)) return;
  const i32 channel = i % groups * 8, count = min(p.c - channel, 8);
  float v[8];
  load8(p.x + position * p.pitch + channel, count, v);
  UNROLL for (i32 e = 0; e < 8; e++)
    if (e < count) v[e] = affine<CFG_ACT>(v[e], p.scale[channel + e], p.bias[channel + e]);
  store8(p.out, position, channel, count, v);
}

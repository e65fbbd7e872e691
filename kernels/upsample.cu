// Sampling a map at another size.
//
//   y[b, p, q, c] = the four inputs around it, between columns first, then between rows: each time
//                   a + (b - a) f, with a, b and f from one entry of a table for each row and column
//
// x [B, H, W, pitch] FP16; row_taps [P], column_taps [Q] of (first, second, fraction), filled on the
// host so that every backend takes the same inputs; y [B, P, Q, pitch] as FP16 and, for a graph
// output, f32.
//
// Thread: 8 channels of one output position. Block: 256 threads. Grid: ceil(B P Q ceil(C / 8) / 256).
// No shared memory. 6 B P Q C FLOP; 2 (B H W C + B P Q C) bytes: memory-bound.
// Nearest neighbours are exact; bilinear has relative L2 error at most 5e-4 against f64. PyTorch's
// `interpolate`.
#include "sink.cuh"

struct Taps {
  i32 first, second;
  float fraction;
};

struct UpsampleParams {
  i32 rows;
  i32 h, w, c;
  i32 p, q;
  i32 pitch;  // of x
  i32 unused;
  const u16* x;
  const Taps* row_taps;
  const Taps* column_taps;
  Sink out;
};

KERNEL BOUNDS(256, 1) upsample(PARAM UpsampleParams a) {
  const u32 groups = (a.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const size_t position = i / groups;
  if (position >= (size_t)(a.rows * a.p * a.q)) return;
  const i32 channel = i % groups * 8, count = min(a.c - channel, 8);
  const i32 q = (i32)position % a.q, p = (i32)position / a.q % a.p, row = (i32)position / a.q / a.p;
  const Taps down = a.row_taps[p], across = a.column_taps[q];
  float lines[2][8], right[8];
  UNROLL for (i32 line = 0; line < 2; line++) {
    const i32 h = line == 0 ? down.first : down.second;
    const u16* x = a.x + ((size_t)row * a.h + h) * a.w * a.pitch + channel;
    load8(x + (size_t)across.first * a.pitch, count, lines[line]);
    load8(x + (size_t)across.second * a.pitch, count, right);
    UNROLL for (i32 e = 0; e < 8; e++)
      lines[line][e] = fmaf(right[e] - lines[line][e], across.fraction, lines[line][e]);
  }
  UNROLL for (i32 e = 0; e < 8; e++)
    lines[0][e] = fmaf(lines[1][e] - lines[0][e], down.fraction, lines[0][e]);
  store8(a.out, position, channel, count, lines[0]);
}

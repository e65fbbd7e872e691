// Resizing pictures exactly as Pillow does: a weighted sum along the rows, rounded to u8, then one
// along the columns, rounded to u8.
//
//   resize_rows:    t[b, i, q, e] = clip((2^21 + sum over k of wx[q, k] x[b, top + i, fx[q] + k, e]) >> 22)
//   resize_columns: y[b, p, q, e] = clip((2^21 + sum over k of wy[p, k] t[b, fy[p] - top + k, q, e]) >> 22)
//
// x [B, H, W, 3], t [B, I, Q, 3], y [B, P, Q, 3] u8; of each axis (first, count) a result and
// [results, taps] i32 weights of 22 fraction bits, made on the host. P and Q are those of the part of
// the result that is kept, so that a crop after the resize costs nothing; top is the first row that
// any of its rows needs, and I the number of them.
//
// Thread: one pixel. Block: 256 threads. Grid: ceil(pixels / 256). No shared memory: neighbouring
// threads read neighbouring pixels, which the first-level cache holds.
// 6 taps integer operations a pixel and pass; 3 (H W + 2 I Q + P Q) bytes a picture: memory-bound.
// Exact. Pillow's `Image.resize` of u8 pictures with antialias (libImaging/Resample.c).
#include "dev.cuh"

struct ResizeParams {
  i32 rows;              // B
  i32 from_h, from_w;    // of the source
  i32 to_h, to_w;        // of the result
  i32 top;               // what is taken off `first` along the columns, or added along the rows
  i32 taps;
  i32 unused;
  const u8* x;
  const i32* bounds;   // [results, 2]: first sample, number of samples
  const i32* weights;  // [results, taps]
  u8* y;
};

// This thread's pixel of the result.
struct Pixel {
  size_t image;
  i32 row, column;

  DEV bool find(const ResizeParams& p) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    const u32 area = p.to_h * p.to_w;
    image = i / area;
    row = i % area / p.to_w;
    column = i % p.to_w;
    return image < (size_t)p.rows;
  }
};

// Adds up samples `step` bytes apart and writes the pixel.
DEV void weighted_sum(const ResizeParams& p, const Pixel& pixel, i32 at, const u8* x, size_t step) {
  const i32* weights = p.weights + (size_t)at * p.taps;
  i32 sum[3] = {1 << 21, 1 << 21, 1 << 21};
  for (i32 k = 0; k < p.bounds[2 * at + 1]; k++)
    UNROLL for (i32 e = 0; e < 3; e++) sum[e] += weights[k] * x[k * step + e];
  u8* y = p.y + ((pixel.image * p.to_h + pixel.row) * p.to_w + pixel.column) * 3;
  UNROLL for (i32 e = 0; e < 3; e++) y[e] = (u8)min(max(sum[e] >> 22, 0), 255);
}

KERNEL BOUNDS(256, 1) resize_rows(PARAM ResizeParams p) {
  Pixel pixel;
  if (!pixel.find(p)) return;
  const size_t line = pixel.image * p.from_h + p.top + pixel.row;
  const u8* x = p.x + (line * p.from_w + p.bounds[2 * pixel.column]) * 3;
  weighted_sum(p, pixel, pixel.column, x, 3);
}

KERNEL BOUNDS(256, 1) resize_columns(PARAM ResizeParams p) {
  Pixel pixel;
  if (!pixel.find(p)) return;
  const size_t line = pixel.image * p.from_h + p.bounds[2 * pixel.row] - p.top;
  const u8* x = p.x + (line * p.from_w + pixel.column) * 3;
  weighted_sum(p, pixel, pixel.row, x, (size_t)p.from_w * 3);
}

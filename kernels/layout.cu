// Changes of layout: nothing is computed.
//
//   import:  y[m, c] = x[m, c], from dense f32 given by the caller to FP16 at a pitch
//   copy:    y[m, c] = x[m, c], from one pitch to another: into a concatenation, or to alignment
//   flatten: y[b, c P + i] = x[b, i, c], from channels fastest to PyTorch's channels first
//
// x [M, pitch], M = rows * positions; y as FP16 and, for a graph output, f32.
//
// import, copy: thread 8 channels of a position, block 256 threads. flatten: block 32 x 8 threads,
// one square of 32 positions x 32 channels through 4.1 KiB of static shared memory, so that reads
// and writes are both contiguous; grid (rows * ceil(P / 32), ceil(C / 32)).
// No FLOP: memory-bound. Exact, but for the rounding of import to FP16.
#include "sink.cuh"

struct CopyParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c;
  i32 pitch;  // of x
  const void* x;
  Sink out;
};

// Finds the eight channels of this thread.
DEV bool find_group(const CopyParams& p, size_t& position, i32& channel, i32& count) {
  const u32 groups = (p.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  position = i / groups;
  channel = i % groups * 8;
  count = min(p.c - channel, 8);
  return position < (size_t)(p.rows * p.positions);
}

KERNEL BOUNDS(256, 1) import(PARAM CopyParams p) {
  size_t position;
  i32 channel, count;
  if (!find_group(p, position, channel, count)) return;
  const float* x = (const float*)p.x + position * p.pitch + channel;
  float v[8];
  UNROLL for (i32 i = 0; i < 8; i++) v[i] = i < count ? x[i] : 0.f;
  store8(p.out, position, channel, count, v);
}

KERNEL BOUNDS(256, 1) copy(PARAM CopyParams p) {
  size_t position;
  i32 channel, count;
  if (!find_group(p, position, channel, count)) return;
  float v[8];
  load8((const u16*)p.x + position * p.pitch + channel, count, v);
  store8(p.out, position, channel, count, v);
}

KERNEL BOUNDS(256, 1) flatten(PARAM CopyParams p) {
  __shared__ float square[32][33];
  const i32 strips = (p.positions + 31) / 32, row = blockIdx.x / strips;
  const i32 i0 = blockIdx.x % strips * 32, c0 = blockIdx.y * 32;
  const u16* x = (const u16*)p.x + (size_t)row * p.positions * p.pitch;
  for (i32 y = threadIdx.y; y < 32; y += 8) {
    const i32 i = i0 + y, c = c0 + threadIdx.x;
    const bool inside = i < p.positions && c < p.c;
    square[y][threadIdx.x] = inside ? half_to_float(x[(size_t)i * p.pitch + c]) : 0.f;
  }
  barrier_block();
  for (i32 y = threadIdx.y; y < 32; y += 8) {
    const i32 c = c0 + y, i = i0 + threadIdx.x;
    if (i < p.positions && c < p.c) store1(p.out, row, c * p.positions + i, square[threadIdx.x][y]);
  }
}

// From u8 pixels to the network's input.
//
//   y[b, h, w, c] = table[c][x[b, h, w, c]],  table[c][v] = (v / 255 - mean[c]) / std[c]
//
// x [B, H, W, 3] u8; table [3, 256] f32, filled on the host, so that the 768 possible results are
// the same bits as any other backend's; y [B, H, W, pitch] FP16 with C = 3. Where y owns its
// padding channels they are written as zeros, in the same 16-byte store.
//
// Thread: one pixel. Block: 256 threads. Grid: ceil(B H W / 256). No shared memory.
// No FLOP; 3 bytes read and 16 written a pixel: memory-bound. Exact.
#include "sink.cuh"

struct NormalizeParams {
  i32 rows;
  i32 pixels;    // H W
  i32 owns_pad;  // whether channels 3 to 7 of y belong to it
  i32 unused;
  const u8* x;
  const float* table;
  Sink out;
};

KERNEL BOUNDS(256, 1) normalize(PARAM NormalizeParams p) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= (u32)(p.rows * p.pixels)) return;
  const u8* x = p.x + (size_t)i * 3;
  const float v[8] = {p.table[x[0]], p.table[256 + x[1]], p.table[512 + x[2]]};
  const bool wide = p.owns_pad && p.out.half_pitch == 8 && aligned16(p.out.half) && !p.out.full;
  store8(p.out, i, 0, wide ? 8 : 3, v);
}

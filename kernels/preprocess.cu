// From u8 pixels to the network's input.
//
//   normalize: y[b, h, w, c] = table[c][x[b, h, w, c]],  table[c][v] = (v / 255 - mean[c]) / std[c]
//   patches:   y[b, p, q, (r, s, c)] = the same of x[b, p side + r, q side + s, c]
//
// x [B, H, W, 3] u8; table [3, 256] f32, filled on the host, so that the 768 possible results are
// the same bits as any other backend's; y FP16 and, for a graph output, f32, normalize
// [B, H, W, pitch] with C = 3, patches [B, H / side, W / side, pitch] with C = 3 side^2. Where the
// result of normalize owns its padding channels they are written as zeros, in the same 16-byte store.
//
// normalize: thread one pixel. patches: thread 8 channels of one patch. Block: 256 threads. Grid:
// ceil(threads / 256). No shared memory.
// No FLOP; 3 bytes read and 16 (patches: 6) written a pixel: memory-bound. Exact.
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

struct PatchesParams {
  i32 rows;
  i32 h, w;  // of y
  i32 side;
  const u8* x;
  const float* table;
  Sink out;
};

KERNEL BOUNDS(256, 1) patches(PARAM PatchesParams p) {
  const i32 line = 3 * p.side, channels = line * p.side;
  const u32 groups = (channels + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const size_t position = i / groups;
  if (position >= (size_t)(p.rows * p.h * p.w)) return;
  const i32 channel = i % groups * 8, count = min(channels - channel, 8);
  const size_t row = position / p.w;  // of patches, over all images
  const u8* x = p.x + row * p.side * p.w * line + position % p.w * line;
  float v[8] = {};
  UNROLL for (i32 e = 0; e < 8; e++) {
    if (e >= count) break;
    const i32 at = (channel + e) % line;
    v[e] = p.table[at % 3 * 256 + x[(size_t)((channel + e) / line) * p.w * line + at]];
  }
  store8(p.out, position, channel, count, v);
}

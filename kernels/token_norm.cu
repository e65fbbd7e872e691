// Norms over the channels of a token, or over each of several equal groups of them.
//
//   layer_norm: y = (x - mean) / sqrt(var + eps) * gamma + beta, var the biased variance
//   rms_norm:   y = x / sqrt(mean of x^2 + eps) * gamma
//
// x [M, pitch] FP16, its first G C channels being G groups of C; gamma, beta [C] f32, shared by the
// groups; y [M, G C] as FP16 and, for a graph output, f32. M = rows * positions.
//
// Warp: one group of one token; a lane takes 8 channels in every 256. Mean, then squared deviations
// from it, both f32 and joined along one tree; the second and third reading of x hit the first-level
// cache. Block: 8 warps. Grid: ceil(M G / 8). No shared memory.
// About 8 M G C FLOP; 4 M G C bytes: memory-bound. Relative L2 error at most 5e-4 against f64.
// Ba et al. 2016 (arXiv:1607.06450), Zhang and Sennrich 2019 (arXiv:1910.07467).
#include "sink.cuh"

struct TokenNormParams {
  i32 rows;
  i32 positions;  // of one row
  i32 groups;     // G
  i32 c;          // of one group
  i32 pitch;      // of x
  float eps;
  const u16* x;
  const float* gamma;
  const float* beta;
  Sink out;
};

DEV float sum_of_warp(float v) {
  UNROLL for (i32 mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// The group of this warp.
struct Group {
  size_t position;
  i32 start;  // its first channel
  const u16* x;

  DEV bool find(const TokenNormParams& p) {
    const u32 i = blockIdx.x * 8 + threadIdx.y;
    position = i / p.groups;
    start = i % p.groups * p.c;
    x = p.x + position * p.pitch + start;
    return position < (size_t)(p.rows * p.positions);
  }

  // Calls visit(channel, count, values) for this lane's chunks.
  template <class Visit>
  DEV void each(const TokenNormParams& p, Visit visit) const {
    for (i32 c = threadIdx.x * 8; c < p.c; c += 256) {
      float v[8];
      load8(x + c, p.c - c, v);
      visit(c, min(p.c - c, 8), v);
    }
  }

  DEV float mean_square_around(const TokenNormParams& p, float center) const {
    float sum = 0.f;
    each(p, [&](i32, i32 count, float (&v)[8]) {
      UNROLL for (i32 e = 0; e < 8; e++) {
        const float d = e < count ? v[e] - center : 0.f;
        sum += d * d;
      }
    });
    return sum_of_warp(sum) / (float)p.c;
  }
};

KERNEL BOUNDS(256, 1) layer_norm(PARAM TokenNormParams p) {
  Group group;
  if (!group.find(p)) return;
  float sum = 0.f;
  group.each(p, [&](i32, i32, float (&v)[8]) { UNROLL for (i32 e = 0; e < 8; e++) sum += v[e]; });
  const float mean = sum_of_warp(sum) / (float)p.c;
  const float scale = 1.f / sqrtf(group.mean_square_around(p, mean) + p.eps);
  group.each(p, [&](i32 c, i32 count, float (&v)[8]) {
    UNROLL for (i32 e = 0; e < 8; e++)
      if (e < count) v[e] = (v[e] - mean) * scale * p.gamma[c + e] + p.beta[c + e];
    store8(p.out, group.position, group.start + c, count, v);
  });
}

KERNEL BOUNDS(256, 1) rms_norm(PARAM TokenNormParams p) {
  Group group;
  if (!group.find(p)) return;
  const float scale = 1.f / sqrtf(group.mean_square_around(p, 0.f) + p.eps);
  group.each(p, [&](i32 c, i32 count, float (&v)[8]) {
    UNROLL for (i32 e = 0; e < 8; e++)
      if (e < count) v[e] = v[e] * scale * p.gamma[c + e];
    store8(p.out, group.position, group.start + c, count, v);
  });
}

// From a map to tokens, from tokens to one, and softmax over channels.
//
//   embed:      y[b, t] = prefix[t] for t < P, else x[b, t - P] + position[t - P]
//   token_mean: y[b] = mean of x[b, t] over t = start .. start + count - 1
//   softmax:    y[m, c] = exp(x[m, c] - max) / sum of them over c
//
// x [M, pitch] FP16, M = rows * positions; prefix [P, C], position [H W, C] f32; y as FP16 and, for
// a graph output, f32. Sums in f32 in ascending order, those of softmax along one tree of a warp.
//
// embed, token_mean: thread 8 channels of an output token, block 256 threads, grid
// ceil(tokens ceil(C / 8) / 256). softmax: warp one position, block 8 warps, grid ceil(M / 8). No
// shared memory. Each element is read once from memory and written once: memory-bound.
// embed is one rounding from exact; relative L2 error of the others at most 5e-4 against f64.
// Dosovitskiy et al. 2021 (arXiv:2010.11929) for the order of tokens.
#include "sink.cuh"

struct EmbedParams {
  i32 rows;
  i32 prefix_tokens;  // P
  i32 tokens;         // P + H W
  i32 c;
  i32 pitch;  // of x
  i32 unused;
  const u16* x;
  const float* prefix;
  const float* position;
  Sink out;
};

struct TokenMeanParams {
  i32 rows;
  i32 tokens;  // of one row of x
  i32 start, count;
  i32 c;
  i32 pitch;  // of x
  const u16* x;
  Sink out;
};

struct SoftmaxParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c;
  i32 pitch;  // of x
  const u16* x;
  Sink out;
};

KERNEL BOUNDS(256, 1) embed(PARAM EmbedParams p) {
  const u32 groups = (p.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const size_t position = i / groups;
  if (position >= (size_t)(p.rows * p.tokens)) return;
  const i32 channel = i % groups * 8, count = min(p.c - channel, 8);
  const i32 row = position / p.tokens, token = position % p.tokens, from = token - p.prefix_tokens;
  float v[8] = {};
  const float* added = p.prefix + (size_t)token * p.c + channel;
  if (from >= 0) {
    const i32 pixels = p.tokens - p.prefix_tokens;
    load8(p.x + ((size_t)row * pixels + from) * p.pitch + channel, count, v);
    added = p.position + (size_t)from * p.c + channel;
  }
  UNROLL for (i32 e = 0; e < 8; e++) if (e < count) v[e] += added[e];
  store8(p.out, position, channel, count, v);
}

KERNEL BOUNDS(256, 1) token_mean(PARAM TokenMeanParams p) {
  const u32 groups = (p.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const i32 row = i / groups;
  if (row >= p.rows) return;
  const i32 channel = i % groups * 8, count = min(p.c - channel, 8);
  const u16* x = p.x + ((size_t)row * p.tokens + p.start) * p.pitch + channel;
  float sum[8] = {}, v[8];
  for (i32 t = 0; t < p.count; t++) {
    load8(x + (size_t)t * p.pitch, count, v);
    UNROLL for (i32 e = 0; e < 8; e++) sum[e] += v[e];
  }
  UNROLL for (i32 e = 0; e < 8; e++) sum[e] /= (float)p.count;
  store8(p.out, row, channel, count, sum);
}

KERNEL BOUNDS(256, 1) softmax(PARAM SoftmaxParams p) {
  const size_t position = blockIdx.x * 8 + threadIdx.y;
  if (position >= (size_t)(p.rows * p.positions)) return;
  const u16* x = p.x + position * p.pitch;
  float largest = __int_as_float(0xff800000), total = 0.f;
  for (i32 c = threadIdx.x; c < p.c; c += 32) largest = fmaxf(largest, half_to_float(x[c]));
  UNROLL for (i32 mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
  for (i32 c = threadIdx.x; c < p.c; c += 32) total += expf(half_to_float(x[c]) - largest);
  UNROLL for (i32 mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  for (i32 c = threadIdx.x; c < p.c; c += 32)
    store1(p.out, position, c, expf(half_to_float(x[c]) - largest) / total);
}

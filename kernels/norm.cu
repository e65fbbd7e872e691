// Batch norm with the statistics of this run, in three kernels.
//
//   mean[c], var[c] = mean and biased variance of x[.., c] over all M = rows * positions
//   y[m, c] = act((x[m, c] - mean[c]) * (gamma[c] / sqrt(var[c] + eps)) + beta[c])
//
// x [M, pitch] FP16; gamma, beta [C] f32; partial [ceil(M / 512), 2, C] f32 holds the mean and the
// sum of squared deviations of each run of 512 positions; moments [2, C] f32 holds mean and
// gamma / sqrt(var + eps). Runs are joined in ascending order (Chan, Golub and LeVeque 1983), so the
// result depends on M and x alone, not on the grid.
//
// batch_moments: block 32 channels x 8 threads, one run; grid (runs, ceil(C / 32)); 1 KiB static
// shared memory. batch_join: one thread a channel. batch_apply: thread 8 channels of a position.
// About 8 M C FLOP; x is read twice from memory and once from the cache, y written: memory-bound.
// Relative L2 error at most 5e-4 against f64. Ioffe and Szegedy 2015 (arXiv:1502.03167).
#include "sink.cuh"

enum { RUN = 512 };

struct BatchNormParams {
  i32 rows;
  i32 positions;  // of one row
  i32 c;
  i32 pitch;  // of x
  float eps;
  i32 unused;
  const u16* x;
  const float* gamma;
  const float* beta;
  float* partial;
  float* moments;
  Sink out;
};

// The sum over the eight threads of a channel, in ascending order, for each of them.
DEV float sum_of_channel(float (&shared)[8][32], float v) {
  barrier_block();
  shared[threadIdx.y][threadIdx.x] = v;
  barrier_block();
  float sum = 0.f;
  UNROLL for (i32 y = 0; y < 8; y++) sum += shared[y][threadIdx.x];
  return sum;
}

KERNEL BOUNDS(256, 1) batch_moments(PARAM BatchNormParams p) {
  __shared__ float shared[8][32];
  const i32 m = p.rows * p.positions, first = blockIdx.x * RUN, last = min(first + RUN, m);
  const i32 c = blockIdx.y * 32 + threadIdx.x;
  const bool inside = c < p.c;
  const u16* x = p.x + (inside ? c : 0);

  float sum = 0.f;
  for (i32 i = first + threadIdx.y; i < last; i += 8) sum += half_to_float(x[(size_t)i * p.pitch]);
  const float mean = sum_of_channel(shared, sum) / (float)(last - first);
  float squares = 0.f;
  for (i32 i = first + threadIdx.y; i < last; i += 8) {
    const float d = half_to_float(x[(size_t)i * p.pitch]) - mean;
    squares += d * d;
  }
  squares = sum_of_channel(shared, squares);
  if (inside && threadIdx.y == 0) {
    p.partial[(size_t)(2 * blockIdx.x) * p.c + c] = mean;
    p.partial[(size_t)(2 * blockIdx.x + 1) * p.c + c] = squares;
  }
}

KERNEL BOUNDS(256, 1) batch_join(PARAM BatchNormParams p) {
  const i32 c = blockIdx.x * 256 + threadIdx.x;
  if (c >= p.c) return;
  const i32 m = p.rows * p.positions, runs = (m + RUN - 1) / RUN;
  float count = 0.f, mean = 0.f, squares = 0.f;
  for (i32 i = 0; i < runs; i++) {
    const float n = (float)min(m - i * RUN, (i32)RUN);
    const float d = p.partial[(size_t)(2 * i) * p.c + c] - mean;
    const float all = count + n;
    mean += d * (n / all);
    squares += p.partial[(size_t)(2 * i + 1) * p.c + c] + d * d * (count * (n / all));
    count = all;
  }
  p.moments[c] = mean;
  p.moments[p.c + c] = p.gamma[c] / sqrtf(squares / count + p.eps);
}

KERNEL BOUNDS(256, 1) batch_apply(PARAM BatchNormParams p) {
  const u32 groups = (p.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
  const size_t position = i / groups;
  if (position >= (size_t)(p.rows * p.positions)) return;
  const i32 channel = i % groups * 8, count = min(p.c - channel, 8);
  float v[8];
  load8(p.x + position * p.pitch + channel, count, v);
  UNROLL for (i32 e = 0; e < 8; e++) {
    if (e >= count) break;
    const i32 c = channel + e;
    v[e] = activate<CFG_ACT>((v[e] - p.moments[c]) * p.moments[p.c + c] + p.beta[c]);
  }
  store8(p.out, position, channel, count, v);
}

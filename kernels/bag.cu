// Attention pooling over a bag, and the classifier rows that follow it.
//
//   attention_part, attention_join:
//     y[a, c] = sum over n of softmax(s[.., a])[n] x[n, c]
//   row_dot:
//     y[r] = sum over c of x[r, c] w[r, c] + bias[r]
//
// s [N, A] and x [N, C] FP16, each with its own pitch. The bag is cut into runs of 512 instances;
// attention_part writes for each run and branch (largest score, sum of exponentials, their weighted
// sum of x) to part [ceil(N / 512), A, 2 + C] f32, and attention_join adds the runs in ascending
// order, each rescaled to the largest score of all (the online softmax of Milakov and Gimelshein
// 2018, arXiv:1805.02867). Runs have a fixed length, so the order never depends on the grid.
//
// attention_part: thread 2 channels; block 128 threads, one run; grid (runs, A, ceil(C / 256));
// 2.5 KiB static shared memory. attention_join: thread one channel; grid (ceil(C / 128), A).
// row_dot: one warp a row. 2 N A C FLOP, 2 N (C + A) bytes a branch: memory-bound.
// Relative L2 error at most 5e-4 against f64. Ilse et al. 2018 (arXiv:1802.04712).
#include "sink.cuh"

enum { RUN = 512, THREADS = 128 };

struct AttentionParams {
  i32 rows;      // N
  i32 branches;  // A
  i32 c;
  i32 score_pitch;
  i32 value_pitch;
  i32 unused;
  const u16* scores;
  const u16* values;
  float* part;
  Sink out;  // [A, C]
};

struct RowDotParams {
  i32 rows;  // R
  i32 c;
  i32 pitch;  // of x
  i32 unused;
  const u16* x;
  const u16* weight;  // [R, C]
  const float* bias;  // [R]
  Sink out;           // one position of R channels
};

DEV float negative_infinity() { return __int_as_float(0xff800000); }

// exp(s - largest); an empty run (largest = -inf) weighs nothing.
DEV float softmax_weight(float s, float largest) {
  return largest == negative_infinity() ? 0.f : expf(s - largest);
}

// Joins one value of every thread, always along the same tree.
template <class Join>
DEV float join_block(float (&shared)[THREADS], float v, Join join) {
  barrier_block();
  shared[threadIdx.x] = v;
  for (i32 step = THREADS / 2; step > 0; step /= 2) {
    barrier_block();
    if (threadIdx.x < step) shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + step]);
  }
  barrier_block();
  return shared[0];
}

KERNEL BOUNDS(THREADS, 1) attention_part(PARAM AttentionParams p) {
  __shared__ float shared[THREADS];
  __shared__ float weights[RUN];
  const i32 first = blockIdx.x * RUN, count = min(p.rows - first, (i32)RUN);
  const u16* scores = p.scores + (size_t)first * p.score_pitch + blockIdx.y;
  float* part = p.part + ((size_t)blockIdx.x * p.branches + blockIdx.y) * (p.c + 2);

  float largest = negative_infinity();
  for (i32 i = threadIdx.x; i < count; i += THREADS)
    largest = fmaxf(largest, half_to_float(scores[(size_t)i * p.score_pitch]));
  largest = join_block(shared, largest, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0.f;
  for (i32 i = threadIdx.x; i < count; i += THREADS) {
    weights[i] = softmax_weight(half_to_float(scores[(size_t)i * p.score_pitch]), largest);
    sum += weights[i];
  }
  sum = join_block(shared, sum, [](float a, float b) { return a + b; });
  if (blockIdx.z == 0 && threadIdx.x == 0) {
    part[0] = largest;
    part[1] = sum;
  }

  const i32 c = (blockIdx.z * THREADS + threadIdx.x) * 2;
  if (c >= p.c) return;
  const bool two = c + 1 < p.c;
  const u16* x = p.values + (size_t)first * p.value_pitch + c;
  float sum0 = 0.f, sum1 = 0.f;
  for (i32 i = 0; i < count; i++, x += p.value_pitch) {
    sum0 += weights[i] * half_to_float(x[0]);
    if (two) sum1 += weights[i] * half_to_float(x[1]);
  }
  part[2 + c] = sum0;
  if (two) part[3 + c] = sum1;
}

KERNEL BOUNDS(THREADS, 1) attention_join(PARAM AttentionParams p) {
  const i32 c = blockIdx.x * THREADS + threadIdx.x, runs = (p.rows + RUN - 1) / RUN;
  if (c >= p.c) return;
  const float* part = p.part + (size_t)blockIdx.y * (p.c + 2);
  const size_t step = (size_t)p.branches * (p.c + 2);
  float largest = negative_infinity();
  for (i32 i = 0; i < runs; i++) largest = fmaxf(largest, part[i * step]);
  float total = 0.f, sum = 0.f;
  for (i32 i = 0; i < runs; i++) {
    const float scale = softmax_weight(part[i * step], largest);
    total += part[i * step + 1] * scale;
    sum += part[i * step + 2 + c] * scale;
  }
  store1(p.out, blockIdx.y, c, sum / total);
}

KERNEL BOUNDS(32, 1) row_dot(PARAM RowDotParams p) {
  const i32 r = blockIdx.x;
  float sum = 0.f;
  for (i32 c = threadIdx.x; c < p.c; c += 32)
    sum += half_to_float(p.x[(size_t)r * p.pitch + c]) * half_to_float(p.weight[(size_t)r * p.c + c]);
  UNROLL for (i32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (threadIdx.x == 0) store1(p.out, 0, r, sum + p.bias[r]);
}

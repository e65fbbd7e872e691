// One number for each channel over the rows of a bag.
//
//   reduce_part, reduce_join: y[c] = mean or largest of x[n, c] over n
//   percentile:               y[c] = s + (t - s) * (at - floor(at)), s and t the values at floor(at)
//                             and the next in ascending order, at = fraction * (N - 1)
//
// x [N, pitch] FP16, N any; y [C] as FP16 and, for a graph output, f32. Sums and the interpolation
// are f64: a sum of FP16 numbers is exact there for every N a device holds. NaN wins a maximum; in
// the order of a percentile it lies beyond infinity on the side of its sign, and -0 before +0.
//
// reduce_part: block 32 channels x 8 rows, one run of 512 rows, to part [ceil(N / 512), C] f64; grid
// (runs, ceil(C / 32)); 2 KiB static shared memory. reduce_join: thread one channel, runs in
// ascending order. percentile: block 32 channels x 8 rows, all rows three times: counts of the high
// byte of the key, counts of the low byte under the one chosen, the least key above; grid
// ceil(C / 32); 33 KiB static shared memory. Counting commutes, so the order of threads does not
// show. 2 N C bytes for each reading: memory-bound.
// Equal to f64 up to the last rounding. NumPy's `quantile` with its default method.
#include "sink.cuh"

enum { RUN = 512, LINES = 8 };

struct ReduceParams {
  i32 rows;  // N
  i32 c;
  i32 pitch;    // of x
  i32 largest;  // whether the maximum is taken instead of the mean
  double fraction;
  const u16* x;
  double* part;
  Sink out;  // one position
};

DEV double join(const ReduceParams& p, double a, double b) {
  return p.largest ? (b > a || b != b ? b : a) : a + b;
}

// What joins to nothing.
DEV double nothing(const ReduceParams& p) {
  return p.largest ? -__longlong_as_double(0x7ff0000000000000) : 0.;
}

KERNEL BOUNDS(256, 1) reduce_part(PARAM ReduceParams p) {
  __shared__ double shared[LINES][32];
  const i32 c = blockIdx.y * 32 + threadIdx.x, first = blockIdx.x * RUN;
  const i32 last = min(first + (i32)RUN, p.rows);
  double found = nothing(p);
  if (c < p.c)
    for (i32 n = first + threadIdx.y; n < last; n += LINES)
      found = join(p, found, (double)half_to_float(p.x[(size_t)n * p.pitch + c]));
  shared[threadIdx.y][threadIdx.x] = found;
  barrier_block();
  if (threadIdx.y > 0 || c >= p.c) return;
  for (i32 y = 1; y < LINES; y++) found = join(p, found, shared[y][threadIdx.x]);
  p.part[(size_t)blockIdx.x * p.c + c] = found;
}

KERNEL BOUNDS(256, 1) reduce_join(PARAM ReduceParams p) {
  const i32 c = blockIdx.x * 256 + threadIdx.x, runs = (p.rows + RUN - 1) / RUN;
  if (c >= p.c) return;
  double found = nothing(p);
  for (i32 i = 0; i < runs; i++) found = join(p, found, p.part[(size_t)i * p.c + c]);
  store1(p.out, 0, c, (float)(p.largest ? found : found / (double)p.rows));
}

// A whole number in the order of the FP16 number it stands for, and back.
DEV u32 key_of(u16 half) { return half & 0x8000 ? 0xffff - half : half + 0x8000; }
DEV double value_of(u32 key) {
  return (double)half_to_float((u16)(key >= 0x8000 ? key - 0x8000 : 0xffff - key));
}

// Steps over buckets of `counts` while they lie before `rank`, which becomes a rank in the bucket.
DEV u32 find_bucket(const u32 (&counts)[256][32], u32& rank) {
  u32 bucket = 0;
  while (rank >= counts[bucket][threadIdx.x]) rank -= counts[bucket++][threadIdx.x];
  return bucket;
}

KERNEL BOUNDS(256, 1) percentile(PARAM ReduceParams p) {
  __shared__ u32 counts[256][32];
  __shared__ u32 chosen[32], above[32];
  const i32 c = blockIdx.x * 32 + threadIdx.x;
  const bool inside = c < p.c, leader = inside && threadIdx.y == 0;
  const u16* x = p.x + (inside ? c : 0);
  const double at = p.fraction * (double)(p.rows - 1);
  u32 rank = (u32)at;

  for (i32 pass = 0; pass < 2; pass++) {
    for (i32 i = threadIdx.y; i < 256; i += LINES) counts[i][threadIdx.x] = 0;
    barrier_block();
    for (i32 n = threadIdx.y; inside && n < p.rows; n += LINES) {
      const u32 key = key_of(x[(size_t)n * p.pitch]);
      if (pass == 0) {
        count_shared(&counts[key >> 8][threadIdx.x]);
      } else if (key >> 8 == chosen[threadIdx.x]) {
        count_shared(&counts[key & 255][threadIdx.x]);
      }
    }
    barrier_block();
    if (leader) {
      const u32 bucket = find_bucket(counts, rank);
      chosen[threadIdx.x] = pass == 0 ? bucket : chosen[threadIdx.x] * 256 + bucket;
    }
    barrier_block();
  }

  // The next number in order is the same again, or the least above it.
  const u32 key = inside ? chosen[threadIdx.x] : 0;
  if (leader) above[threadIdx.x] = rank + 1 < counts[key & 255][threadIdx.x] ? key : 0xffff;
  barrier_block();
  for (i32 n = threadIdx.y; inside && n < p.rows; n += LINES) {
    const u32 other = key_of(x[(size_t)n * p.pitch]);
    if (other > key) least_shared(&above[threadIdx.x], other);
  }
  barrier_block();
  if (!leader) return;
  const double value = value_of(key);
  const u32 next = at < (double)(p.rows - 1) ? above[threadIdx.x] : key;
  store1(p.out, 0, c, (float)(value + (value_of(next) - value) * (at - floor(at))));
}

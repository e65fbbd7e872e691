// Attention logits of the instances of a bag, hidden layer and all, in one kernel.
//
//   plain: y[n, a] = sum over d of w[a, d] tanh(v[d] x[n] + bv[d]) + bw[a]
//   gated: y[n, a] = sum over d of w[a, d] tanh(v[d] x[n] + bv[d]) sigmoid(u[d] x[n] + bu[d]) + bw[a]
//
// x [N, pitch] FP16, the first C of each pitch read; weight [D' / WIDTH, 64, C'] FP16, zero-filled,
// where a group of 64 holds WIDTH hidden units: with a gate 32 rows of v, then their 32 rows of u,
// without one 64 rows of v; bias [D' / WIDTH, 64] f32; w [A, D'] f32; bw [A] f32; y [N, A] as FP16
// and, for a graph output, f32. The hidden layer stays in f32 and is never written.
//
// Block: 64 instances, 4 warps of 16, all hidden units in turn; a row belongs to one quad of
// threads from the product to the score, so nothing crosses warps and the order is fixed.
// Grid: ceil(N / 64). Dynamic shared memory: CFG_STAGES * 8 KiB + 256 A bytes.
// 2 N C D (1 + gated) FLOP; 2 N C bytes and the weights once a block from L2: compute-bound.
// Relative L2 error at most 5e-4 against f64. Ilse et al. 2018 (arXiv:1802.04712).
#include "sink.cuh"
#include "tile.cuh"

typedef Tile<64, 64, 4, 1, CFG_STAGES> T;
enum { WIDTH = CFG_GATED ? 32 : 64 };

struct ScoreParams {
  i32 rows;  // N
  i32 c;
  i32 pitch;     // of x
  i32 c_padded;  // C'
  i32 groups;    // D' / WIDTH
  i32 branches;  // A
  const u16* x;
  const u16* weight;
  const float* bias;
  const float* w;
  const float* w_bias;
  Sink out;
};

// Hidden unit `column` (of 64) of the row, from this thread's sums.
DEV float hidden(const T::Sums& sums, const float* bias, i32 j, i32 e) {
  const float v = tanhf(sums[0][j][e] + bias[T::column(j) + e % 2]);
  if (!CFG_GATED) return v;
  const i32 gate = CFG_GATED ? j + 4 : j;
  return v * activate<ACT_SIGMOID>(sums[0][gate][e] + bias[T::column(gate) + e % 2]);
}

KERNEL BOUNDS(T::THREADS, 1) attention_score(PARAM ScoreParams p) {
  const u32 ring = shared_address(dynamic_shared);
  float* scores = (float*)(dynamic_shared + T::STAGES * T::STAGE_BYTES);  // [64, A]
  const i32 n0 = blockIdx.x * T::BM, leader = threadIdx.x % 4 == 0;
  if (leader)
    for (i32 half = 0; half < 2; half++)
      for (i32 a = 0; a < p.branches; a++) scores[T::row(0, half) * p.branches + a] = p.w_bias[a];

  NO_UNROLL for (i32 g = 0; g < p.groups; g++) {
    DenseRows<T, T::A_PASSES> a(p.x, p.pitch, n0, p.rows, p.c);
    DenseRows<T, T::B_PASSES> b(p.weight, p.c_padded, g * 64, p.groups * 64, p.c_padded);
    T::Sums sums;
    clear<T>(sums);
    multiply<T>(sums, ring, (p.c_padded + BK - 1) / BK, a, b);
    UNROLL for (i32 j = 0; j < WIDTH / 8; j++)
      UNROLL for (i32 e = 0; e < 4; e++) sums[0][j][e] = hidden(sums, p.bias + g * 64, j, e);

    NO_UNROLL for (i32 branch = 0; branch < p.branches; branch++) {
      const float* w = p.w + (size_t)branch * p.groups * WIDTH + g * WIDTH;
      float part[2] = {0.f, 0.f};
      UNROLL for (i32 j = 0; j < WIDTH / 8; j++)
        UNROLL for (i32 e = 0; e < 4; e++) part[e / 2] += sums[0][j][e] * w[T::column(j) + e % 2];
      UNROLL for (i32 half = 0; half < 2; half++) {
        part[half] += shuffle_xor(part[half], 1);
        part[half] += shuffle_xor(part[half], 2);
        if (leader) scores[T::row(0, half) * p.branches + branch] += part[half];
      }
    }
  }

  if (leader)
    for (i32 half = 0; half < 2; half++) {
      const i32 row = T::row(0, half);
      if (n0 + row >= p.rows) continue;
      for (i32 a = 0; a < p.branches; a++)
        store1(p.out, n0 + row, a, scores[row * p.branches + a]);
    }
}

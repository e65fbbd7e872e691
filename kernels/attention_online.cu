// Self-attention over sequences of any length, not causal, with an online softmax.
//
//   y[b, i, h] = sum over j of softmax over j (q[b, i, h] k[b, j, h] / sqrt(d)) v[b, j, h]
//
// Tensors as in attention.cu; d <= CFG_D, N any. Keys pass by in blocks of CFG_KEYS; when a larger
// score appears, what was summed before is scaled down to it (Milakov and Gimelshein 2018,
// arXiv:1805.02867). The blocks are fixed and taken in ascending order.
//
// Block: one row and head, 64 queries, 4 warps of 16. A block of keys and values is copied while the
// one before it is used. Grid: (B, H, ceil(Q / 64)). Dynamic shared memory:
// 4 CFG_KEYS (2 CFG_D + 16) bytes.
// 4 B H Q N d FLOP; 2 B H d (2 Q + 2 N ceil(Q / 64)) bytes, the keys mostly from L2: compute-bound.
// Relative L2 error at most 5e-4 against f64. Dao 2023 (arXiv:2307.08691).
#include "attention.cuh"

enum { SIDE = KEYS * ROW, STAGE = 2 * SIDE };

KERNEL BOUNDS(THREADS, 1) attention_online(PARAM SelfAttentionParams p) {
  const u32 ring = shared_address(dynamic_shared);
  const i32 first = (blockIdx.z * WARPS + threadIdx.x / 32) * 16;
  const i32 blocks = (p.keys + KEYS - 1) / KEYS;
  Queries q;
  Values o = {};
  float largest[2] = {negative_infinity(), negative_infinity()}, total[2] = {0.f, 0.f};
  load_queries(q, p, first);

  copy_head(ring, p.k, p, 0, KEYS);
  copy_head(ring + SIDE, p.v, p, 0, KEYS);
  copy_commit();
  NO_UNROLL for (i32 b = 0; b < blocks; b++) {
    copy_wait<0>();
    // Every thread's copies of this block have landed, and nobody still reads the one before.
    barrier_block();
    if (b + 1 < blocks) {
      const u32 next = ring + (b + 1) % 2 * STAGE;
      copy_head(next, p.k, p, (b + 1) * KEYS, KEYS);
      copy_head(next + SIDE, p.v, p, (b + 1) * KEYS, KEYS);
      copy_commit();
    }
    Scores s;
    const u32 keys = ring + b % 2 * STAGE;
    multiply_keys(s, q, keys, KEYS, b * KEYS, p.keys);
    const float before[2] = {largest[0], largest[1]};
    join_largest(largest, s);
    UNROLL for (i32 half = 0; half < 2; half++) {
      const float shrink = exp2f((before[half] - largest[half]) * p.scale);
      total[half] *= shrink;
      UNROLL for (i32 j = 0; j < D / 8; j++)
        UNROLL for (i32 e = 0; e < 2; e++) o[j][2 * half + e] *= shrink;
    }
    exponentiate(s, largest, total, p.scale);
    multiply_values(o, s, keys + SIDE, KEYS);
  }
  store_values(p, o, total, first);
}

// Self-attention over short sequences, not causal, with an exact softmax.
//
//   y[b, i, h] = sum over j of softmax over j (q[b, i, h] k[b, j, h] / sqrt(d)) v[b, j, h]
//
// q [B, Q, query_pitch] (or [Q, query_pitch] for all rows), k, v [B, N, pitch] FP16, head h at
// channels h d .. h d + d - 1; y [B, Q, H d] as FP16 and, for a graph output, f32. d <= CFG_D, a
// multiple of 16; N <= CFG_KEYS. Scores, exponentials and their sum are f32; the weights, at most 1,
// are rounded to FP16 for the second product and divided by their sum after it.
//
// Block: one row and head, 4 warps of 16 queries each, tile by tile. All keys and values of the head
// lie in shared memory and the scores of 16 queries against all keys in registers, so that the
// largest is known before the first exponential is taken.
// Grid: (B, H, parts), the parts sharing the tiles of queries. Dynamic shared memory:
// 2 ceil16(N) (2 CFG_D + 16) bytes.
// 4 B H Q N d FLOP; 2 B H d (2 Q + 2 N) bytes: compute-bound from about N = 128 on.
// Relative L2 error at most 5e-4 against f64. Vaswani et al. 2017 (arXiv:1706.03762).
#include "attention.cuh"

KERNEL BOUNDS(THREADS, 1) attention_whole(PARAM SelfAttentionParams p) {
  const i32 count = (p.keys + 15) / 16 * 16;
  const u32 keys = shared_address(dynamic_shared), values = keys + count * ROW;
  copy_head(keys, p.k, p, 0, count);
  copy_head(values, p.v, p, 0, count);
  copy_commit();
  copy_wait<0>();
  barrier_block();

  const i32 warps = WARPS * gridDim.z;
  NO_UNROLL for (i32 tile = blockIdx.z * WARPS + threadIdx.x / 32; tile * 16 < p.queries; tile += warps) {
    Queries q;
    Scores s;
    Values o = {};
    float largest[2] = {negative_infinity(), negative_infinity()}, total[2] = {0.f, 0.f};
    load_queries(q, p, tile * 16);
    multiply_keys(s, q, keys, count, 0, p.keys);
    join_largest(largest, s);
    exponentiate(s, largest, total, p.scale);
    multiply_values(o, s, values, count);
    // Addresses of the stores would otherwise be made while the scores still fill the registers.
    barrier_warp();
    store_values(p, o, total, tile * 16);
  }
}

// Parts of self-attention on tensor cores: one head, queries in tiles of 16 that a warp owns.
//
// Fragments are those of mma.m16n8k16. A thread of a warp holds, of 16 queries, rows lane / 4 and
// lane / 4 + 8, so that a row lies in a quad of threads from the scores to the result and nothing
// crosses warps. Scores keep the layout of sums, which is that of the left operand of the next
// product: weights never leave the registers.
//
// Keys and values lie in shared memory as rows of D halves and 16 bytes more, which keeps ldmatrix
// free of bank conflicts for every multiple of 16. Channels beyond those of the head and rows beyond
// the last key are zeros there; the scores of the latter are set to -inf.
#pragma once
#include "sink.cuh"

enum { D = CFG_D, KEYS = CFG_KEYS, WARPS = 4, THREADS = 32 * WARPS, ROW = D * 2 + 16 };

struct SelfAttentionParams {
  i32 rows;
  i32 queries, keys;  // of one row
  i32 d;              // of one head
  i32 query_pitch, pitch;
  u64 query_row;  // elements from the queries of one row to the next; 0 when all have the same
  const u16* q;
  const u16* k;
  const u16* v;
  float scale;  // log2(e) / sqrt(d)
  i32 unused;
  Sink out;  // [rows * queries, heads d]
};

typedef float Scores[KEYS / 8][4];
typedef float Values[D / 8][4];
typedef u32 Queries[D / 16][4];

DEV float negative_infinity() { return __int_as_float(0xff800000); }

// The first `count` of two neighbouring numbers, zeros behind them.
DEV u32 load_pair(const u16* p, i32 count) {
  if (count >= 2 && ((u64)p & 3) == 0) return *(const u32*)p;
  return (count > 0 ? (u32)p[0] : 0) | (count > 1 ? (u32)p[1] << 16 : 0);
}

// Queries first .. first + 15 of this head.
DEV void load_queries(Queries& q, const SelfAttentionParams& p, i32 first) {
  const u16* base = p.q + blockIdx.x * p.query_row + blockIdx.y * p.d;
  const i32 lane = threadIdx.x % 32;
  UNROLL for (i32 s = 0; s < D / 16; s++)
    UNROLL for (i32 e = 0; e < 4; e++) {
      const i32 row = first + lane / 4 + e % 2 * 8, c = s * 16 + lane % 4 * 2 + e / 2 * 8;
      const i32 count = row < p.queries ? p.d - c : 0;
      q[s][e] = load_pair(count > 0 ? base + (size_t)row * p.query_pitch + c : base, count);
    }
}

// Copies rows first .. first + count - 1 of keys or values of this head, asynchronously where its
// channels allow it.
DEV void copy_head(u32 shared, const u16* matrix, const SelfAttentionParams& p, i32 first, i32 count) {
  const u16* base = matrix + (size_t)blockIdx.x * p.keys * p.pitch + blockIdx.y * p.d;
  for (i32 i = threadIdx.x; i < count * (D / 8); i += THREADS) {
    const i32 row = i / (D / 8), c = i % (D / 8) * 8;
    const i32 inside = first + row < p.keys ? min(max(p.d - c, 0), 8) : 0;
    const u16* from = inside > 0 ? base + (size_t)(first + row) * p.pitch + c : base;
    const u32 to = shared + row * ROW + c * 2;
    if (aligned16(from)) {
      copy_async16(to, from, inside * 2);
    } else {
      u32 words[4];
      UNROLL for (i32 w = 0; w < 4; w++) words[w] = load_pair(from + 2 * w, inside - 2 * w);
      store_shared16(to, make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
}

// s = q k^T over `count` keys that start with key `first`; -inf beyond the last of all.
DEV void multiply_keys(Scores& s, const Queries& q, u32 keys, i32 count, i32 first, i32 keys_end) {
  const i32 lane = threadIdx.x % 32;
  const u32 address = keys + (lane % 8 + lane / 16 * 8) * ROW + lane / 8 % 2 * 16;
  UNROLL for (i32 j = 0; j < KEYS / 8; j++)
    UNROLL for (i32 e = 0; e < 4; e++) s[j][e] = 0.f;
  UNROLL for (i32 j = 0; j < KEYS / 16; j++) {
    if (j * 16 >= count) break;
    UNROLL for (i32 step = 0; step < D / 16; step++) {
      u32 right[4];
      load_matrix_x4(right, address + j * 16 * ROW + step * 32);
      multiply_16x8x16(s[2 * j], q[step], right[0], right[1]);
      multiply_16x8x16(s[2 * j + 1], q[step], right[2], right[3]);
    }
  }
  UNROLL for (i32 j = 0; j < KEYS / 8; j++) {
    const i32 key = first + j * 8;
    if (key + 8 <= keys_end) continue;
    UNROLL for (i32 e = 0; e < 4; e++)
      if (key + lane % 4 * 2 + e % 2 >= keys_end) s[j][e] = negative_infinity();
  }
}

// The largest score of rows lane / 4 and lane / 4 + 8, and `largest`.
DEV void join_largest(float (&largest)[2], const Scores& s) {
  UNROLL for (i32 j = 0; j < KEYS / 8; j++)
    UNROLL for (i32 e = 0; e < 4; e++) largest[e / 2] = fmaxf(largest[e / 2], s[j][e]);
  UNROLL for (i32 half = 0; half < 2; half++) {
    largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 1));
    largest[half] = fmaxf(largest[half], shuffle_xor(largest[half], 2));
  }
}

// s = exp((s - largest) / sqrt(d)); adds this thread's part of each row to `total`.
DEV void exponentiate(Scores& s, const float (&largest)[2], float (&total)[2], float scale) {
  UNROLL for (i32 j = 0; j < KEYS / 8; j++)
    UNROLL for (i32 e = 0; e < 4; e++) {
      s[j][e] = exp2f((s[j][e] - largest[e / 2]) * scale);
      total[e / 2] += s[j][e];
    }
}

// o += s v over `count` keys, the weights rounded to FP16.
DEV void multiply_values(Values& o, const Scores& s, u32 values, i32 count) {
  const i32 lane = threadIdx.x % 32;
  const u32 address = values + lane % 16 * ROW + lane / 16 * 16;
  UNROLL for (i32 j = 0; j < KEYS / 16; j++) {
    if (j * 16 >= count) break;
    const u32 left[4] = {
        pack_halves(s[2 * j][0], s[2 * j][1]), pack_halves(s[2 * j][2], s[2 * j][3]),
        pack_halves(s[2 * j + 1][0], s[2 * j + 1][1]), pack_halves(s[2 * j + 1][2], s[2 * j + 1][3])};
    UNROLL for (i32 step = 0; step < D / 16; step++) {
      u32 right[4];
      load_matrix_x4_transposed(right, address + j * 16 * ROW + step * 32);
      multiply_16x8x16(o[2 * step], left, right[0], right[1]);
      multiply_16x8x16(o[2 * step + 1], left, right[2], right[3]);
    }
  }
}

// Writes o / total for queries first .. first + 15.
DEV void store_values(const SelfAttentionParams& p, const Values& o, float (&total)[2], i32 first) {
  const i32 lane = threadIdx.x % 32;
  UNROLL for (i32 half = 0; half < 2; half++) {
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    const i32 row = first + lane / 4 + half * 8;
    if (row >= p.queries) continue;
    const size_t position = (size_t)blockIdx.x * p.queries + row;
    const float scale = 1.f / total[half];
    UNROLL for (i32 j = 0; j < D / 8; j++) {
      const i32 c = j * 8 + lane % 4 * 2;
      if (c >= p.d) break;
      store2(p.out, position, blockIdx.y * p.d + c, p.d - c, o[j][2 * half] * scale,
             o[j][2 * half + 1] * scale);
    }
  }
}

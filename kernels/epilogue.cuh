// What follows a product before it is stored: act(sum * scale[k] + bias[k] + residual), in f32.
//
// The tile passes through shared memory as FP16, so that the residual is read and the result
// written in rows of 16 bytes a thread. An f32 graph output goes straight from the registers.
#pragma once
#include "sink.cuh"
#include "tile.cuh"

struct Epilogue {
  const float* scale;     // [K]
  const float* bias;      // [K]
  const u16* residual;    // [M, residual_pitch] FP16
  u64 residual_pitch;
  Sink out;               // [M, K]
};

// Bytes from one row of the staged tile to the next: 16 more than its length, against conflicts.
template <class T>
DEV u32 staged(i32 row, i32 column) {
  return row * (T::BN * 2 + 16) + column * 2;
}

// Reads the residual of a tile into shared memory; zeros outside the matrix.
template <class T>
DEV void stage_residual(const Epilogue& e, u32 shared, i32 m0, i32 n0, i32 m_end, i32 n_end) {
  enum { PER_ROW = T::BN / CHUNK };
  for (i32 i = T::thread(); i < T::BM * PER_ROW; i += T::THREADS) {
    const i32 row = i / PER_ROW, column = i % PER_ROW * CHUNK;
    const i32 count = m0 + row < m_end ? min(max(n_end - n0 - column, 0), (i32)CHUNK) : 0;
    const u16* p = e.residual + (count > 0 ? (m0 + row) * e.residual_pitch + n0 + column : 0);
    if (aligned16(p)) {
      copy_async16(shared + staged<T>(row, column), p, count * 2);
    } else {
      for (i32 c = 0; c < CHUNK; c++)
        store_shared2(shared + staged<T>(row, column + c), c < count ? p[c] : (u16)0);
    }
  }
  copy_commit();
  copy_wait<0>();
  T::sync();
}

// Writes the staged tile.
template <class T>
DEV void store_staged(const Sink& out, u32 shared, i32 m0, i32 n0, i32 m_end, i32 n_end) {
  enum { PER_ROW = T::BN / CHUNK };
  for (i32 i = T::thread(); i < T::BM * PER_ROW; i += T::THREADS) {
    const i32 row = i / PER_ROW, column = i % PER_ROW * CHUNK;
    const i32 count = min(n_end - n0 - column, (i32)CHUNK);
    if (m0 + row >= m_end || count <= 0) continue;
    u16* p = out.half + (size_t)(m0 + row) * out.half_pitch + n0 + column;
    if (count == CHUNK && aligned16(p)) {
      *(uint4*)p = load_shared16(shared + staged<T>(row, column));
    } else {
      for (i32 c = 0; c < count; c++) p[c] = load_shared2(shared + staged<T>(row, column + c));
    }
  }
}

// Finishes the tile whose first element is [m0, n0] of a result [m_end, n_end].
template <class T, i32 ACT_KIND, bool RESIDUAL>
DEV void finish(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                i32 m_end, i32 n_end) {
  if (RESIDUAL) stage_residual<T>(e, shared, m0, n0, m_end, n_end);
  UNROLL for (i32 j = 0; j < T::FRAGS_N; j++) {
    const i32 column = T::column(j), n = n0 + column;
    const bool in0 = n < n_end, in1 = n + 1 < n_end;
    const float scale0 = in0 ? e.scale[n] : 0.f, scale1 = in1 ? e.scale[n + 1] : 0.f;
    const float bias0 = in0 ? e.bias[n] : 0.f, bias1 = in1 ? e.bias[n + 1] : 0.f;
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++) {
      UNROLL for (i32 half = 0; half < 2; half++) {
        const i32 row = T::row(i, half), m = m0 + row;
        const u32 place = shared + staged<T>(row, column);
        float v0 = sums[i][j][2 * half] * scale0 + bias0;
        float v1 = sums[i][j][2 * half + 1] * scale1 + bias1;
        if (RESIDUAL) {
          const u32 pair = load_shared4(place);
          v0 += low_half(pair);
          v1 += high_half(pair);
        }
        v0 = activate<ACT_KIND>(v0);
        v1 = activate<ACT_KIND>(v1);
        store_shared4(place, pack_halves(v0, v1));
        if (e.out.full && m < m_end) {
          float* p = e.out.full + (size_t)m * e.out.full_pitch + n;
          if (in0) p[0] = v0;
          if (in1) p[1] = v1;
        }
      }
    }
  }
  T::sync();
  if (e.out.half) store_staged<T>(e.out, shared, m0, n0, m_end, n_end);
}

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

// Where element [m, n] of a product belongs in the result: there.
struct InPlace {
  i32 n_end;

  DEV size_t position(i32 m, i32) const { return m; }
  DEV i32 channel(i32 n) const { return n; }
  // Channels there are from column n on.
  DEV i32 room(i32 n) const { return n_end - n; }
};

// Bytes from one row of the staged tile to the next: 16 more than its length, against conflicts.
template <class T>
DEV u32 staged(i32 row, i32 column) {
  return row * (T::BN * 2 + 16) + column * 2;
}

// Reads the residual of a tile into shared memory; zeros outside the matrix.
template <class T, class Place>
DEV void stage_residual(const Epilogue& e, u32 shared, i32 m0, i32 n0, i32 m_end, Place place) {
  enum { PER_ROW = T::BN / CHUNK };
  for (i32 i = T::thread(); i < T::BM * PER_ROW; i += T::THREADS) {
    const i32 row = i / PER_ROW, column = i % PER_ROW * CHUNK, m = m0 + row, n = n0 + column;
    const i32 count = m < m_end ? min(max(place.room(n), 0), (i32)CHUNK) : 0;
    const u16* p = e.residual;
    if (count > 0) p += place.position(m, n) * e.residual_pitch + place.channel(n);
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

// Finishes the sums and stages them as FP16; f32 outputs are written at once.
template <class T, i32 ACT_KIND, bool RESIDUAL, bool FULL, class Place>
DEV void stage_result(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                      i32 m_end, Place place) {
  UNROLL for (i32 j = 0; j < T::FRAGS_N; j++) {
    const i32 column = T::column(j), n = n0 + column, room = place.room(n);
    const bool in0 = room > 0, in1 = room > 1;
    const float scale0 = in0 ? e.scale[n] : 0.f, scale1 = in1 ? e.scale[n + 1] : 0.f;
    const float bias0 = in0 ? e.bias[n] : 0.f, bias1 = in1 ? e.bias[n + 1] : 0.f;
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++) {
      UNROLL for (i32 half = 0; half < 2; half++) {
        const i32 row = T::row(i, half), m = m0 + row;
        const u32 at = shared + staged<T>(row, column);
        float v0 = sums[i][j][2 * half] * scale0 + bias0;
        float v1 = sums[i][j][2 * half + 1] * scale1 + bias1;
        if (RESIDUAL) {
          const u32 pair = load_shared4(at);
          v0 += low_half(pair);
          v1 += high_half(pair);
        }
        v0 = activate<ACT_KIND>(v0);
        v1 = activate<ACT_KIND>(v1);
        store_shared4(at, pack_halves(v0, v1));
        if (FULL && e.out.full && m < m_end && in0) {
          float* p = e.out.full + place.position(m, n) * e.out.full_pitch + place.channel(n);
          p[0] = v0;
          if (in1) p[1] = v1;
        }
      }
    }
  }
}

// Writes the first WIDTH columns of the staged tile.
template <class T, i32 WIDTH, class Place>
DEV void store_staged(const Sink& out, u32 shared, i32 m0, i32 n0, i32 m_end, Place place) {
  enum { PER_ROW = WIDTH / CHUNK };
  for (i32 i = T::thread(); i < T::BM * PER_ROW; i += T::THREADS) {
    const i32 row = i / PER_ROW, column = i % PER_ROW * CHUNK, m = m0 + row, n = n0 + column;
    const i32 count = min(place.room(n), (i32)CHUNK);
    if (m0 + row >= m_end || count <= 0) continue;
    u16* p = out.half + place.position(m, n) * out.half_pitch + place.channel(n);
    if (count == CHUNK && aligned16(p)) {
      *(uint4*)p = load_shared16(shared + staged<T>(row, column));
    } else {
      for (i32 c = 0; c < count; c++) p[c] = load_shared2(shared + staged<T>(row, column + c));
    }
  }
}

// Finishes the tile whose first element is [m0, n0] of a product of m_end rows.
template <class T, i32 ACT_KIND, bool RESIDUAL, class Place>
DEV void finish_at(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                   i32 m_end, Place place) {
  if (RESIDUAL) stage_residual<T>(e, shared, m0, n0, m_end, place);
  stage_result<T, ACT_KIND, RESIDUAL, true>(sums, e, shared, m0, n0, m_end, place);
  T::sync();
  if (e.out.half) store_staged<T, T::BN>(e.out, shared, m0, n0, m_end, place);
}

// The same, of a result [m_end, n_end] that is the product itself.
template <class T, i32 ACT_KIND, bool RESIDUAL>
DEV void finish(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                i32 m_end, i32 n_end) {
  const InPlace place = {n_end};
  finish_at<T, ACT_KIND, RESIDUAL>(sums, e, shared, m0, n0, m_end, place);
}

// Of rows that come in groups of four, one position of the result each: the largest, as FP16.
template <class T, i32 ACT_KIND>
DEV void finish_pooled(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                       i32 m_end, i32 n_end) {
  enum { PER_ROW = T::BN / CHUNK };
  const InPlace place = {n_end};
  stage_result<T, ACT_KIND, false, false>(sums, e, shared, m0, n0, m_end, place);
  T::sync();
  for (i32 i = T::thread(); i < T::BM / 4 * PER_ROW; i += T::THREADS) {
    const i32 group = i / PER_ROW, column = i % PER_ROW * CHUNK;
    const i32 count = min(n_end - n0 - column, (i32)CHUNK);
    if (m0 + group * 4 >= m_end || count <= 0) continue;
    float best[CHUNK], v[CHUNK];
    unpack8(load_shared16(shared + staged<T>(group * 4, column)), best);
    UNROLL for (i32 row = 1; row < 4; row++) {
      unpack8(load_shared16(shared + staged<T>(group * 4 + row, column)), v);
      UNROLL for (i32 c = 0; c < CHUNK; c++) best[c] = larger(best[c], v[c]);
    }
    store8(e.out, m0 / 4 + group, n0 + column, count, best);
  }
}

// Of columns that alternate between gate and value: act(gate + bias) * (value + bias), half as many.
template <class T, i32 ACT_KIND>
DEV void finish_gated(const typename T::Sums& sums, const Epilogue& e, u32 shared, i32 m0, i32 n0,
                      i32 m_end, i32 n_end) {
  UNROLL for (i32 j = 0; j < T::FRAGS_N; j++) {
    const i32 column = T::column(j), n = n0 + column;
    const bool inside = n < n_end;
    const float gate_bias = inside ? e.bias[n] : 0.f, value_bias = inside ? e.bias[n + 1] : 0.f;
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++) {
      UNROLL for (i32 half = 0; half < 2; half++) {
        const i32 row = T::row(i, half), m = m0 + row;
        const float gate = activate<ACT_KIND>(sums[i][j][2 * half] + gate_bias);
        const float v = gate * (sums[i][j][2 * half + 1] + value_bias);
        store_shared2(shared + staged<T>(row, column / 2), float_to_half(v));
        if (e.out.full && m < m_end && inside)
          e.out.full[(size_t)m * e.out.full_pitch + n / 2] = v;
      }
    }
  }
  T::sync();
  const InPlace place = {n_end / 2};
  if (e.out.half) store_staged<T, T::BN / 2>(e.out, shared, m0, n0 / 2, m_end, place);
}

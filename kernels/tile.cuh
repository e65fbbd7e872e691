// The product of two tiles: sums[m, n] += sum over k of a[m, k] b[n, k], FP16 in, f32 sums.
//
// A block owns BM x BN sums in registers. Both operands pass through shared memory in slices of
// BK = 32 columns, a ring of STAGES slices deep, filled by asynchronous copies while the tensor
// cores work on an earlier slice. A slice row is 64 bytes, four chunks of 16, and chunk c of row r
// lies at c ^ (r / 2 mod 4), which keeps both the copies and ldmatrix free of bank conflicts.
//
// A sum runs over k in ascending steps of 16 whatever the tile, so that every tile shape, every
// batch size and every position in a batch gives the same bits.
#pragma once
#include "dev.cuh"

enum { BK = 32, CHUNK = 8, CHUNKS = BK / CHUNK };

template <i32 BM_, i32 BN_, i32 WARPS_M_, i32 WARPS_N_, i32 STAGES_>
struct Tile {
  enum {
    BM = BM_,
    BN = BN_,
    WARPS_M = WARPS_M_,
    WARPS_N = WARPS_N_,
    STAGES = STAGES_,
    THREADS = 32 * WARPS_M * WARPS_N,
    WARP_M = BM / WARPS_M,
    WARP_N = BN / WARPS_N,
    FRAGS_M = WARP_M / 16,
    FRAGS_N = WARP_N / 8,
    A_BYTES = BM * BK * 2,
    B_BYTES = BN * BK * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    PASS_ROWS = THREADS / CHUNKS,  // rows that all threads together copy at once
    A_PASSES = BM / PASS_ROWS,
    B_PASSES = BN / PASS_ROWS,
  };
  static_assert(FRAGS_M * 16 * WARPS_M == BM && FRAGS_N * 8 * WARPS_N == BN, "whole fragments");
  static_assert(FRAGS_N % 2 == 0, "b fragments are loaded in pairs");
  static_assert(A_PASSES * PASS_ROWS == BM && B_PASSES * PASS_ROWS == BN, "whole passes");
  static_assert(STAGES >= 2, "one slice is filled while another is used");

  typedef float Sums[FRAGS_M][FRAGS_N][4];

  // The threads that own sums.
  static DEV i32 thread() { return threadIdx.x; }
  static DEV void sync() { barrier_block(); }

  // Row and column in the tile of sums[i][j][2 * half + {0, 1}], for this thread.
  static DEV i32 row(i32 i, i32 half) {
    return (threadIdx.x / 32) % WARPS_M * WARP_M + i * 16 + threadIdx.x % 32 / 4 + half * 8;
  }
  static DEV i32 column(i32 j) {
    return (threadIdx.x / 32) / WARPS_M * WARP_N + j * 8 + threadIdx.x % 4 * 2;
  }
};

DEV u32 swizzled(i32 row, i32 chunk) { return row * (BK * 2) + ((chunk ^ ((row >> 1) & 3)) << 4); }

// The left rows of a slice as the tensor cores read them, 16 columns at a time: this lane's chunk of
// each of its fragments.
template <class T>
struct SliceRows {
  u32 slice;
  i32 row, chunk;

  DEV SliceRows(u32 slice) : slice(slice) {
    const i32 lane = threadIdx.x % 32;
    row = threadIdx.x / 32 % T::WARPS_M * T::WARP_M + lane % 16;
    chunk = lane / 16;
  }

  DEV u32 address(i32 fragment) const { return slice + swizzled(row + fragment * 16, chunk); }
  DEV void next() { chunk += 2; }
};

// Copies slices of rows that lie `pitch` elements apart: weights, and the left side of a GEMM.
template <class T, i32 PASSES>
struct DenseRows {
  const u16* matrix;
  const u16* next;  // this thread's chunk of its first row
  size_t stride;    // elements from one of its rows to the next
  i32 rows_left;    // rows of the matrix from its first row on
  i32 columns_left;

  DEV DenseRows(const u16* matrix, i32 pitch, i32 first, i32 rows, i32 columns) : matrix(matrix) {
    const i32 row = first + threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * CHUNK;
    next = matrix + (size_t)row * pitch + column;
    stride = (size_t)T::PASS_ROWS * pitch;
    rows_left = rows - row;
    columns_left = columns - column;
  }

  DEV void copy(u32 slice) {
    const i32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const i32 bytes = min(max(columns_left, 0), CHUNK) * 2;
    UNROLL for (i32 i = 0; i < PASSES; i++) {
      const bool inside = i * T::PASS_ROWS < rows_left && bytes > 0;
      copy_async16(slice + swizzled(row + i * T::PASS_ROWS, chunk),
                   inside ? next + i * stride : matrix, inside ? bytes : 0);
    }
    next += BK;
    columns_left -= BK;
  }

  // What is done to a slice between its copy and its use, by the thread that copied it.
  DEV void arrived(u32) {}

  // Its rows when it is the left operand.
  DEV SliceRows<T> rows(u32 slice) const { return SliceRows<T>(slice); }
};

// The products of one slice.
template <class T, class Rows>
DEV void multiply_slice(typename T::Sums& sums, Rows&& a, u32 b) {
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i32 b_row = warp / T::WARPS_M * T::WARP_N + lane % 8 + lane / 16 * 8;
  UNROLL for (i32 k = 0; k < BK / 16; k++) {
    u32 left[T::FRAGS_M][4], right[T::FRAGS_N / 2][4];
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++)
      load_matrix_x4(left[i], a.address(i));
    a.next();
    UNROLL for (i32 j = 0; j < T::FRAGS_N / 2; j++)
      load_matrix_x4(right[j], b + swizzled(b_row + j * 16, k * 2 + lane / 8 % 2));
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++)
      UNROLL for (i32 j = 0; j < T::FRAGS_N; j++)
        multiply_16x8x16(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
  }
}

// Adds the products of all slices. On return the ring is free for other use.
template <class T, class A, class B>
DEV void multiply(typename T::Sums& sums, u32 ring, i32 slices, A& a, B& b) {
  UNROLL for (i32 s = 0; s < T::STAGES - 1; s++) {
    if (s < slices) {
      a.copy(ring + s * T::STAGE_BYTES);
      b.copy(ring + s * T::STAGE_BYTES + T::A_BYTES);
    }
    copy_commit();
  }
  i32 use = 0, fill = T::STAGES - 1;
  NO_UNROLL for (i32 s = 0; s < slices; s++) {
    copy_wait<T::STAGES - 2>();
    a.arrived(ring + use * T::STAGE_BYTES);
    // Every thread's copies of this slice have landed, and nobody still reads the one filled next.
    barrier_block();
    if (s + T::STAGES - 1 < slices) {
      a.copy(ring + fill * T::STAGE_BYTES);
      b.copy(ring + fill * T::STAGE_BYTES + T::A_BYTES);
    }
    copy_commit();
    const u32 slice = ring + use * T::STAGE_BYTES;
    multiply_slice<T>(sums, a.rows(slice), slice + T::A_BYTES);
    use = use + 1 == T::STAGES ? 0 : use + 1;
    fill = fill + 1 == T::STAGES ? 0 : fill + 1;
  }
  copy_wait<0>();
  barrier_block();
}

template <class T>
DEV void clear(typename T::Sums& sums) {
  UNROLL for (i32 i = 0; i < T::FRAGS_M; i++)
    UNROLL for (i32 j = 0; j < T::FRAGS_N; j++)
      UNROLL for (i32 e = 0; e < 4; e++) sums[i][j][e] = 0.f;
}

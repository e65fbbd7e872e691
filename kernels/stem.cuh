// First convolutions: at most eight channels, so that a chunk of 16 bytes is one pixel under one tap.
//
// A tile of pixels stays in shared memory, and a row of a fragment of the left operand is read from the
// pixel where it lies: the operand is never written, and a pixel is copied once for all of its taps.
// Columns are those of `conv2d.cu`, two taps a step of 16, and sums add up in the same order.
#pragma once
#include "epilogue.cuh"

enum {
  MAX_FILTERS = 64,
  PIXEL_BYTES = 16,
  BLOCKS = ARCH >= 800 ? 2 : 1,  // of a multiprocessor at once
};

// Sums of a product whose left operand has no place in the ring.
template <i32 BM, i32 WARPS>
struct Resident : Tile<BM, MAX_FILTERS, WARPS, 1, 3> {
  enum { A_BYTES = 0, STAGE_BYTES = MAX_FILTERS * BK * 2, RING_BYTES = 3 * STAGE_BYTES };
};

// H x W pixels, W a multiple of STRIDE. The column past the last pixel that a tap needs is W - 1 and
// zeros. Columns that lie STRIDE apart are neighbours, so that eight positions in a row read
// eight chunks in a row.
template <i32 H, i32 W, i32 STRIDE_>
struct PixelTile {
  enum { STRIDE = STRIDE_, BYTES = H * W * PIXEL_BYTES };
  static_assert(W % STRIDE == 0, "whole strides");

  static DEV u32 offset(i32 y, i32 x) {
    return (y * W + x % STRIDE * (W / STRIDE) + x / STRIDE) * PIXEL_BYTES;
  }
  // Eight zeros.
  static DEV u32 zeros() { return offset(0, W - 1); }

  // Copies the pixels of an image x [h, w, pitch] whose first is [top, left]; zeros outside, in the
  // last column and beyond the c channels.
  static DEV void copy(u32 tile, const u16* x, i32 pitch, i32 h, i32 w, i32 c, i32 top, i32 left) {
    NO_UNROLL for (i32 i = threadIdx.x; i < H * W; i += blockDim.x) {
      const i32 row = i / W, column = i % W, y = top + row, z = left + column;
      const bool inside = (u32)y < (u32)h && (u32)z < (u32)w && column < W - 1;
      copy_async16(tile + offset(row, column), inside ? x + ((size_t)y * w + z) * pitch : x,
                   inside ? c * 2 : 0);
    }
  }
};

// The left operand of a convolution over a tile of pixels: row m of the product is the position
// [m / WIDTH, m % WIDTH] under R x R taps.
template <class T, class Pixels, i32 R, i32 WIDTH>
struct PixelRows {
  u32 tile;
  u32 first[T::FRAGS_M];  // of this lane's pixels under tap 0
  i32 r, s;               // this lane's tap

  // Of rows `from` on; rows from `end` on are the last one again.
  DEV PixelRows(u32 tile, i32 from, i32 end) : tile(tile), r(0), s(threadIdx.x % 32 / 16) {
    UNROLL for (i32 i = 0; i < T::FRAGS_M; i++) {
      const i32 row = threadIdx.x / 32 % T::WARPS_M * T::WARP_M + i * 16 + threadIdx.x % 16;
      const i32 m = min(from + row, end - 1);
      first[i] = tile + Pixels::offset(m / WIDTH * Pixels::STRIDE, m % WIDTH * Pixels::STRIDE);
    }
  }

  DEV u32 address(i32 fragment) const {
    return r < R ? first[fragment] + Pixels::offset(r, s) : tile + Pixels::zeros();
  }

  DEV void next() {
    s += 2;
    if (s >= R) {
      s -= R;
      r++;
    }
  }

  // Nothing of it passes through the ring.
  DEV void copy(u32) {}
  DEV void arrived(u32) {}
  DEV PixelRows& rows(u32) { return *this; }
};

// A max pool of stride 2 over a map [h, w] of which a block has staged a part whose first position is
// [top, left], WIDTH positions a row.
struct Pooling {
  size_t image;    // of the batch
  i32 top, left;
  i32 h, w;
  i32 p0, q0;      // first position of the result that the block stores
  i32 p, q, k;     // of the result
};

// Stores ROWS x COLUMNS positions of the result; what lies outside the map never wins.
template <class T, i32 WINDOW, i32 WIDTH, i32 ROWS, i32 COLUMNS>
DEV void store_largest(const Pooling& to, const Sink& out, u32 shared) {
  enum { PER_PLACE = T::BN / CHUNK };
  NO_UNROLL for (i32 i = threadIdx.x; i < ROWS * COLUMNS * PER_PLACE; i += T::THREADS) {
    const i32 y = i / PER_PLACE / COLUMNS, x = i / PER_PLACE % COLUMNS;
    const i32 channel = i % PER_PLACE * CHUNK, count = min(to.k - channel, (i32)CHUNK);
    if (to.p0 + y >= to.p || to.q0 + x >= to.q || count <= 0) continue;
    float best[CHUNK], v[CHUNK];
    UNROLL for (i32 c = 0; c < CHUNK; c++) best[c] = __int_as_float(0xff800000);
    NO_UNROLL for (i32 r = 0; r < WINDOW; r++) {
      if ((u32)(to.top + 2 * y + r) >= (u32)to.h) continue;
      UNROLL for (i32 s = 0; s < WINDOW; s++) {
        if ((u32)(to.left + 2 * x + s) >= (u32)to.w) continue;
        unpack8(load_shared16(shared + staged<T>((2 * y + r) * WIDTH + 2 * x + s, channel)), v);
        UNROLL for (i32 c = 0; c < CHUNK; c++) best[c] = larger(best[c], v[c]);
      }
    }
    const size_t position = (to.image * to.p + to.p0 + y) * to.q + to.q0 + x;
    store8(out, position, channel, count, best);
  }
}

// Convolution as an implicit matrix product with an epilogue.
//
//   y[b, p, q, k] = act(scale[k] * (sum over r, s, c of
//       x[b, p stride + r dilation - pad, q stride + s dilation - pad, c] w[k, r, s, c])
//       + bias[k] + residual[b, p, q, k])
//
// x [B, H, W, pitch] FP16, the first C of each pitch read, zero outside the map; w [K, R, S, C']
// FP16, C' = C rounded up to 8 and zero-filled; scale, bias [K] f32; y [B, P, Q, pitch] as FP16
// and, for a graph output, f32. With CFG_POOL, y [B, P / 2, Q / 2, pitch] is the largest of each 2 x 2
// square of these results as FP16, and the rows of the product are ordered square by square, so that
// a square never leaves its tile; a last odd row or column is not computed. The left matrix is [B P Q, R S C'] and is never written: each copy
// of 16 bytes finds its pixel and tap. Columns run over c, then s, then r.
//
// Block: CFG_TILE_M output positions x CFG_TILE_N filters, CFG_WARPS_M x CFG_WARPS_N warps.
// Grid: ceil(B P Q / CFG_TILE_M) * ceil(K / CFG_TILE_N), all filters of a strip of positions side by side.
// Dynamic shared memory: max(CFG_STAGES * (CFG_TILE_M + CFG_TILE_N) * 64, CFG_TILE_M * (CFG_TILE_N + 8) * 2) bytes.
// 2 B P Q K R S C FLOP; at least 2 (B H W C + K R S C + B P Q K) bytes.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Chetlur et al. 2014 (arXiv:1410.0759).
#include "epilogue.cuh"

typedef Tile<CFG_TILE_M, CFG_TILE_N, CFG_WARPS_M, CFG_WARPS_N, CFG_STAGES> T;

struct Conv2dParams {
  i32 rows;
  i32 h, w, c;  // of x
  i32 p, q, k;  // of y
  i32 kernel_h, kernel_w;
  i32 stride_h, stride_w;
  i32 pad_h, pad_w;
  i32 dilation_h, dilation_w;
  i32 pitch;     // of x
  i32 c_padded;  // C'
  i32 unused;
  const u16* x;
  const u16* weight;
  Epilogue epilogue;
};

// Copies slices of the left matrix. A thread keeps one chunk column (its tap and channel) and
// A_PASSES rows (output positions).
struct Patches {
  const Conv2dParams& p;
  i32 r, s, c;              // tap and channel of this thread's chunk
  i32 top[T::A_PASSES];     // input row under tap 0 of each position; far outside past the last
  i32 left[T::A_PASSES];    // input column
  i32 pixel[T::A_PASSES];   // b H W + top W + left

  DEV Patches(const Conv2dParams& p, i32 first, i32 m) : p(p), r(0), s(0) {
    const i32 rows = CFG_POOL ? p.p / 2 : p.p, columns = CFG_POOL ? p.q / 2 : p.q;
    UNROLL for (i32 i = 0; i < T::A_PASSES; i++) {
      const i32 position = first + threadIdx.x / CHUNKS + i * T::PASS_ROWS;
      const i32 place = CFG_POOL ? position / 4 : position;
      i32 row = place / columns % rows, column = place % columns;
      const i32 image = place / columns / rows;
      if (CFG_POOL) {
        row = row * 2 + position % 4 / 2;
        column = column * 2 + position % 2;
      }
      top[i] = row * p.stride_h - p.pad_h;
      left[i] = column * p.stride_w - p.pad_w;
      pixel[i] = (image * p.h + top[i]) * p.w + left[i];
      if (position >= m) top[i] = -(1 << 30);
    }
    c = threadIdx.x % CHUNKS * CHUNK;
    settle();
  }

  // Carries channels beyond the last into the next tap.
  DEV void settle() {
    while (c >= p.c_padded) {
      c -= p.c_padded;
      if (++s == p.kernel_w) {
        s = 0;
        r++;
      }
    }
  }

  DEV void copy(u32 slice) {
    const i32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const i32 down = r * p.dilation_h, right = s * p.dilation_w;
    const i32 bytes = r < p.kernel_h ? min(p.c - c, (i32)CHUNK) * 2 : 0;
    UNROLL for (i32 i = 0; i < T::A_PASSES; i++) {
      const bool inside = (u32)(top[i] + down) < (u32)p.h && (u32)(left[i] + right) < (u32)p.w;
      const bool read = inside && bytes > 0;
      const u16* from = p.x + (read ? (size_t)(pixel[i] + down * p.w + right) * p.pitch + c : 0);
      copy_async16(slice + swizzled(row + i * T::PASS_ROWS, chunk), from, read ? bytes : 0);
    }
    c += BK;
    settle();
  }

  DEV void arrived(u32) {}
  DEV SliceRows<T> rows(u32 slice) const { return SliceRows<T>(slice); }
};

KERNEL BOUNDS(T::THREADS, CFG_BLOCKS) conv2d(PARAM Conv2dParams p) {
  const u32 shared = shared_address(dynamic_shared);
  const i32 m = CFG_POOL ? p.rows * (p.p / 2) * (p.q / 2) * 4 : p.rows * p.p * p.q;
  const i32 strips = (p.k + T::BN - 1) / T::BN;
  const i32 m0 = blockIdx.x / strips * T::BM, n0 = blockIdx.x % strips * T::BN;
  const i32 columns = p.kernel_h * p.kernel_w * p.c_padded;

  Patches a(p, m0, m);
  DenseRows<T, T::B_PASSES> b(p.weight, columns, n0, p.k, columns);
  T::Sums sums;
  clear<T>(sums);
  multiply<T>(sums, shared, (columns + BK - 1) / BK, a, b);
  if (CFG_POOL) {
    finish_pooled<T, CFG_ACT>(sums, p.epilogue, shared, m0, n0, m, p.k);
  } else {
    finish<T, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, shared, m0, n0, m, p.k);
  }
}

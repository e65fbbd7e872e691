// Stains made alike: every pixel on its own.
//
//   y[b, h, w, e] = floor(min(2^(t[0][r][e] + t[1][g][e] + t[2][b][e]), 255))
//
// x, y [B, H, W, 3] u8, which may be one; (r, g, b) the values of x; t [3, 256, 3] f32, made on the
// host: what a channel value adds to the base-2 logarithm of each channel of the result. Sums and 2^x
// are additions and multiplications in the host's order, each rounded to nearest and none fused, so
// that the bytes are the host's.
//
// Thread: one pixel. Block: 256 threads. Grid: ceil(B H W / 256). No shared memory: the table's 9 KiB
// stay in the first-level cache.
// 54 FLOP and 6 bytes a pixel: memory-bound. Exact. Macenko et al. 2009 (stain normalisation).
#include "dev.cuh"

struct RecolourParams {
  i32 rows;
  i32 pixels;  // H W
  const u8* x;
  u8* y;
  const float* table;
};

// 2^x for -126 <= x <= 126 and of the nearest of these beyond, within 3e-7.
DEV float power_of_two(float x) {
  // ln(2)^k / k!
  const float c[6] = {0.69314718056f, 0.2402265f, 0.05550411f, 0.009618129f, 0.0013333558f, 0.0001540353f};
  // Adding this leaves the nearest whole number in the low bits.
  const float round = 12582912.f;
  x = fminf(fmaxf(x, -126.f), 126.f);
  const float shifted = add_rounded(x, round);
  const float f = add_rounded(x, -add_rounded(shifted, -round));
  float p = c[5];
  UNROLL for (i32 k = 4; k >= 0; k--) p = add_rounded(c[k], multiply_rounded(f, p));
  p = add_rounded(1.f, multiply_rounded(f, p));
  const i32 whole = __float_as_int(shifted) - __float_as_int(round);
  return multiply_rounded(p, __int_as_float((whole + 127) << 23));
}

KERNEL BOUNDS(256, 1) recolour(PARAM RecolourParams p) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= (u32)(p.rows * p.pixels)) return;
  const u8* x = p.x + (size_t)i * 3;
  u8* y = p.y + (size_t)i * 3;
  const float* r = p.table + x[0] * 3;
  const float* g = p.table + 768 + x[1] * 3;
  const float* b = p.table + 1536 + x[2] * 3;
  UNROLL for (i32 e = 0; e < 3; e++)
    y[e] = (u8)(i32)fminf(power_of_two(add_rounded(add_rounded(r[e], g[e]), b[e])), 255.f);
}

// Pooling over windows of a map.
//
//   max:      y[b, p, q, c] = largest x in the window; padding never wins, NaN always does; the
//             last window may hang over the far edge
//   average:  y = sum of x in the window / (positions in the window, with or without the padding)
//   adaptive: y = mean of x over rows floor(p H / P) .. ceil((p + 1) H / P), columns likewise;
//             P = Q = 1 is global average pooling
//
// x [B, H, W, pitch] FP16, y [B, P, Q, pitch] FP16 and, for a graph output, f32; sums in f32, row by
// row through the window.
//
// Thread: 8 channels of one output position. Block: 256 threads. Grid: ceil(B P Q ceil(C / 8) / 256).
// No shared memory. One operation for each element read: memory-bound, 2 (B H W C + B P Q C) bytes.
// Max is exact; averages have relative L2 error at most 5e-4 against f64.
// PyTorch's MaxPool2d, AvgPool2d and AdaptiveAvgPool2d.
#include "sink.cuh"

struct PoolParams {
  i32 rows;
  i32 h, w, c;
  i32 p, q;
  i32 kernel_h, kernel_w;
  i32 stride_h, stride_w;
  i32 pad_h, pad_w;
  i32 dilation_h, dilation_w;
  i32 count_pad;  // whether an average divides by the padding too
  i32 pitch;      // of x
  const u16* x;
  Sink out;
};

// The output this thread is responsible for.
struct Output {
  i32 row, p, q, channel, count;
  size_t position;

  DEV bool find(const PoolParams& a) {
    const u32 groups = (a.c + 7) / 8, i = blockIdx.x * 256 + threadIdx.x;
    position = i / groups;
    if (position >= (size_t)(a.rows * a.p * a.q)) return false;
    channel = i % groups * 8;
    count = min(a.c - channel, 8);
    q = (i32)position % a.q;
    p = (i32)position / a.q % a.p;
    row = (i32)position / a.q / a.p;
    return true;
  }

  DEV void load(const PoolParams& a, i32 h, i32 w, float (&v)[8]) const {
    load8(a.x + ((size_t)(row * a.h + h) * a.w + w) * a.pitch + channel, count, v);
  }
};

KERNEL BOUNDS(256, 1) max_pool(PARAM PoolParams a) {
  Output o;
  if (!o.find(a)) return;
  float best[8], v[8];
  UNROLL for (i32 e = 0; e < 8; e++) best[e] = __int_as_float(0xff800000);
  for (i32 r = 0; r < a.kernel_h; r++) {
    const i32 h = o.p * a.stride_h + r * a.dilation_h - a.pad_h;
    if ((u32)h >= (u32)a.h) continue;
    for (i32 s = 0; s < a.kernel_w; s++) {
      const i32 w = o.q * a.stride_w + s * a.dilation_w - a.pad_w;
      if ((u32)w >= (u32)a.w) continue;
      o.load(a, h, w, v);
      UNROLL for (i32 e = 0; e < 8; e++) best[e] = larger(best[e], v[e]);
    }
  }
  store8(a.out, o.position, o.channel, o.count, best);
}

KERNEL BOUNDS(256, 1) average_pool(PARAM PoolParams a) {
  Output o;
  if (!o.find(a)) return;
  float sum[8] = {}, v[8];
  i32 inside = 0;
  for (i32 r = 0; r < a.kernel_h; r++) {
    const i32 h = o.p * a.stride_h + r * a.dilation_h - a.pad_h;
    if ((u32)h >= (u32)a.h) continue;
    for (i32 s = 0; s < a.kernel_w; s++) {
      const i32 w = o.q * a.stride_w + s * a.dilation_w - a.pad_w;
      if ((u32)w >= (u32)a.w) continue;
      o.load(a, h, w, v);
      UNROLL for (i32 e = 0; e < 8; e++) sum[e] += v[e];
      inside++;
    }
  }
  const float count = (float)(a.count_pad ? a.kernel_h * a.kernel_w : inside);
  UNROLL for (i32 e = 0; e < 8; e++) sum[e] /= count;
  store8(a.out, o.position, o.channel, o.count, sum);
}

KERNEL BOUNDS(256, 1) adaptive_pool(PARAM PoolParams a) {
  Output o;
  if (!o.find(a)) return;
  const i32 top = o.p * a.h / a.p, bottom = ((o.p + 1) * a.h + a.p - 1) / a.p;
  const i32 left = o.q * a.w / a.q, right = ((o.q + 1) * a.w + a.q - 1) / a.q;
  float sum[8] = {}, v[8];
  for (i32 h = top; h < bottom; h++) {
    for (i32 w = left; w < right; w++) {
      o.load(a, h, w, v);
      UNROLL for (i32 e = 0; e < 8; e++) sum[e] += v[e];
    }
  }
  const float count = (float)((bottom - top) * (right - left));
  UNROLL for (i32 e = 0; e < 8; e++) sum[e] /= count;
  store8(a.out, o.position, o.channel, o.count, sum);
}

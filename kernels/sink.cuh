// Where results go, and reads and writes of eight channels at once.
//
// A tensor is [positions, pitch] FP16 with its channels fastest; its pitch is a multiple of 8. A
// channel slice starts anywhere in its parent, so 16-byte access is used where the address allows
// it and single numbers elsewhere. A graph output is f32, dense and not rounded.
#pragma once
#include "dev.cuh"

struct Sink {
  u16* half;       // [positions, half_pitch] FP16, or null when no step reads the result
  float* full;     // [positions, full_pitch] f32, or null when it is no graph output
  i32 half_pitch;  // elements from one position to the next
  i32 full_pitch;
};

enum Act { ACT_NONE, ACT_RELU, ACT_TANH, ACT_SIGMOID, ACT_GELU, ACT_SILU };

// NaN stays NaN.
template <i32 ACT_KIND>
DEV float activate(float x) {
  if (ACT_KIND == ACT_RELU) return x < 0.f ? 0.f : x;
  if (ACT_KIND == ACT_TANH) return tanhf(x);
  if (ACT_KIND == ACT_SIGMOID) return 1.f / (1.f + expf(-x));
  if (ACT_KIND == ACT_GELU) return 0.5f * x * (1.f + erff(x * 0.70710678f));
  if (ACT_KIND == ACT_SILU) return x / (1.f + expf(-x));
  return x;
}

// The pre-activation of DenseNet and any folded norm: one rounding, then the activation's.
template <i32 ACT_KIND>
DEV float affine(float x, float scale, float bias) {
  return activate<ACT_KIND>(fmaf(x, scale, bias));
}

DEV bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

// The larger number; NaN is larger than any.
DEV float larger(float best, float v) { return v > best || v != v ? v : best; }

DEV void unpack8(uint4 packed, float (&v)[8]) {
  const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
  UNROLL for (i32 i = 0; i < 4; i++) {
    v[2 * i] = low_half(words[i]);
    v[2 * i + 1] = high_half(words[i]);
  }
}

// The first `count` of eight channels, zeros behind them.
DEV void load8(const u16* p, i32 count, float (&v)[8]) {
  if (count >= 8 && aligned16(p)) {
    unpack8(*(const uint4*)p, v);
  } else {
    UNROLL for (i32 i = 0; i < 8; i++) v[i] = i < count ? half_to_float(p[i]) : 0.f;
  }
}

DEV uint4 pack8(const float (&v)[8]) {
  return make_uint4(pack_halves(v[0], v[1]), pack_halves(v[2], v[3]), pack_halves(v[4], v[5]),
                    pack_halves(v[6], v[7]));
}

// Writes the first `count` of eight channels that start at `channel`.
DEV void store8(const Sink& sink, size_t position, i32 channel, i32 count, const float (&v)[8]) {
  if (sink.half) {
    u16* p = sink.half + position * sink.half_pitch + channel;
    if (count >= 8 && aligned16(p)) {
      *(uint4*)p = pack8(v);
    } else {
      UNROLL for (i32 i = 0; i < 8; i++) if (i < count) p[i] = float_to_half(v[i]);
    }
  }
  if (sink.full) {
    float* p = sink.full + position * sink.full_pitch + channel;
    UNROLL for (i32 i = 0; i < 8; i++) if (i < count) p[i] = v[i];
  }
}

// Writes the first `count` (at least 1) of two channels.
DEV void store2(const Sink& sink, size_t position, i32 channel, i32 count, float v0, float v1) {
  if (sink.half) {
    u16* p = sink.half + position * sink.half_pitch + channel;
    if (count >= 2 && ((u64)p & 3) == 0) {
      *(u32*)p = pack_halves(v0, v1);
    } else {
      p[0] = float_to_half(v0);
      if (count >= 2) p[1] = float_to_half(v1);
    }
  }
  if (sink.full) {
    float* p = sink.full + position * sink.full_pitch + channel;
    p[0] = v0;
    if (count >= 2) p[1] = v1;
  }
}

DEV void store1(const Sink& sink, size_t position, i32 channel, float v) {
  if (sink.half) sink.half[position * sink.half_pitch + channel] = float_to_half(v);
  if (sink.full) sink.full[position * sink.full_pitch + channel] = v;
}

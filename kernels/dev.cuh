// The machine: every line of inline PTX and every architecture test of this project.
//
// Kernels above this file are plain C++ over these functions. No toolkit header is needed: NVRTC
// knows the built-in variables, vector types and mathematics, and an FP16 number is its 16 bits.
// Instructions are named as in the PTX ISA; fragments are laid out as in its figures for
// mma.m16n8k16 and ldmatrix.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;

#define DEV __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define PARAM const __grid_constant__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

#ifdef __CUDA_ARCH__
#define ARCH __CUDA_ARCH__
#else
#define ARCH 0
#endif

// ---- Numbers

DEV float half_to_float(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

// Rounds to nearest even; beyond 65504 gives infinity.
DEV u16 float_to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

// Two FP16 numbers in one register, `low` at the lower address.
DEV u32 pack_halves(float low, float high) {
#if ARCH >= 800
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return (u32)float_to_half(low) | ((u32)float_to_half(high) << 16);
#endif
}

// Rounded to nearest and never fused with what comes next: the bits of a host without fused
// multiply-adds.
DEV float add_rounded(float a, float b) { return __fadd_rn(a, b); }
DEV float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }

DEV float low_half(u32 pair) { return half_to_float((u16)pair); }
DEV float high_half(u32 pair) { return half_to_float((u16)(pair >> 16)); }

// ---- Threads

DEV void barrier_block() { __syncthreads(); }
DEV void barrier_warp() { __syncwarp(); }
// Of `threads` threads, which all name the same barrier (1 to 15).
DEV void barrier_named(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEV float shuffle_xor(float v, i32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// Of whole numbers in shared memory, so that the order of the threads does not show.
DEV void count_shared(u32* counter) { atomicAdd(counter, 1u); }
DEV void least_shared(u32* least, u32 v) { atomicMin(least, v); }

// ---- Shared memory: 32-bit addresses

extern __shared__ __align__(1024) u8 dynamic_shared[];

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEV void store_shared16(u32 address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

DEV uint4 load_shared16(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

DEV void store_shared4(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

DEV u32 load_shared4(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

DEV void store_shared2(u32 address, u16 v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(v) : "memory");
}

DEV u16 load_shared2(u32 address) {
  u16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
  return v;
}

// ---- Asynchronous copies, global to shared, 16 bytes at a time (sm_80; before it, synchronous)

// Copies the first `bytes` (0 to 16) and fills the rest with zeros. Both addresses are multiples of
// 16; nothing is read when `bytes` is 0.
DEV void copy_async16(u32 shared, const void* global, i32 bytes) {
#if ARCH >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
#else
  uint4 v = make_uint4(0, 0, 0, 0);
  if (bytes == 16) {
    v = *(const uint4*)global;
  } else if (bytes > 0) {
    u32 words[4];
    UNROLL for (i32 i = 0; i < 4; i++) {
      words[i] = 0;
      if (4 * i < bytes) words[i] = ((const u16*)global)[2 * i];
      if (4 * i + 2 < bytes) words[i] |= (u32)((const u16*)global)[2 * i + 1] << 16;
    }
    v = make_uint4(words[0], words[1], words[2], words[3]);
  }
  store_shared16(shared, v);
#endif
}

DEV void copy_commit() {
#if ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `N` of this thread's committed groups are under way.
template <i32 N>
DEV void copy_wait() {
#if ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- Tensor cores: FP16 products, f32 sums

// Four 8 x 8 matrices of FP16; lane `8 i + r` gives the address of row r of matrix i.
DEV void load_matrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
DEV void load_matrix_x4_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d[16 x 8] += a[16 x 16] b[8 x 16]^T. Before sm_80 as two products over 8 columns.
DEV void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

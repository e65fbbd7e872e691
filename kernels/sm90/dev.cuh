// The machine, Hopper: barriers in shared memory, bulk tensor copies, clusters, warpgroup products.
//
// With dev.cuh the only file with inline PTX. Shared addresses are those of the own block; a function
// that reaches the other blocks of a cluster says so. Instructions are named as in the PTX ISA.
#pragma once
#include "dev.cuh"

// An opaque tensor map, as cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col fill it.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// ---- Threads and registers

// Whether this is the lane that acts for its warp: always the same one.
DEV bool elect_lane() {
  u32 elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

// The registers of each thread of a warpgroup from here on. Growing waits for others to shrink.
template <i32 N>
DEV void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <i32 N>
DEV void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- Clusters

DEV u32 cluster_size() {
  u32 n;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return n;
}

DEV u32 cluster_rank() {
  u32 n;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
  return n;
}

// Of all threads of all blocks of the cluster.
DEV void barrier_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// ---- Barriers in shared memory: a phase ends when all arrivals, and all expected bytes, are in

DEV void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster.
DEV void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEV void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster.
DEV void mbarrier_arrive_at(u32 barrier, u32 rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives, and lets the phase end only when `bytes` have been copied as well.
DEV void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase with this parity, and for what the whole cluster did before it.
DEV void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN_%=:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE_%=;\nbra AGAIN_%=;\nDONE_%=:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- Bulk tensor copies. What lies outside the tensor is read as zeros that count as copied, and
// not written.

DEV void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Orders this thread's writes to shared memory before reads by the tensor cores and the copy engine.
DEV void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The box of a matrix at column x and row y.
DEV void copy_box(u32 shared, const TensorMap* map, u32 barrier, i32 x, i32 y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// The box at (x, y, z).
DEV void copy_box(u32 shared, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same into every block of the cluster whose bit is in `blocks`, where it tells the barrier of
// that block.
DEV void copy_box_to(u32 shared, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z, u32 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"((u16)blocks)
      : "memory");
}

// A column of pixels of an image from (w, h, n) on, in the order of the map's bounding box, each read
// `right` and `down` pixels further on: one tap of a convolution.
DEV void copy_pixels(u32 shared, const TensorMap* map, u32 barrier, i32 c, i32 w, i32 h, i32 n,
                     i32 right, i32 down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"((u16)right), "h"((u16)down)
      : "memory");
}

// Writes the box at column x and row y of a matrix.
DEV void store_box(const TensorMap* map, u32 shared, i32 x, i32 y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y)
               : "memory");
}

DEV void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until the shared memory of all of this thread's committed stores has been read.
DEV void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// ---- Products of a warpgroup

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `N` committed groups are under way.
template <i32 N>
DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Descriptor of a K-major matrix with rows of 128 bytes in 128-byte swizzle, groups of 8 rows
// 1024 bytes apart.
DEV u64 matrix_descriptor(u32 shared) {
  return (u64)((shared & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)(1024 >> 4) << 32) | ((u64)1 << 62);
}

#define SUMS_4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SUMS_16(j) SUMS_4(j), SUMS_4(j + 1), SUMS_4(j + 2), SUMS_4(j + 3)
#define SUMS_32(j) SUMS_16(j), SUMS_16(j + 4)
#define SUMS_64(j) SUMS_32(j), SUMS_32(j + 8)

#define NAMES_0                                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32                                                                                    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64                                                                                    \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "    \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d[64 x N] += a[64 x 16] b[N x 16]^T for N = 64, 128 and 256, by the shape of d. Thread t of the
// warpgroup holds rows 16 (t / 32) + t mod 32 / 4 (+ 8) as mma.m16n8 would.
DEV void wgmma(float (&d)[8][4], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NAMES_0
               "}, %32, %33, 1, 1, 1, 0, 0;"
               : SUMS_32(0)
               : "l"(a), "l"(b));
}

DEV void wgmma(float (&d)[16][4], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NAMES_0 ", " NAMES_32
               "}, %64, %65, 1, 1, 1, 0, 0;"
               : SUMS_64(0)
               : "l"(a), "l"(b));
}

DEV void wgmma(float (&d)[32][4], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" NAMES_0 ", " NAMES_32
               ", " NAMES_64 "}, %128, %129, 1, 1, 1, 0, 0;"
               : SUMS_64(0), SUMS_64(16)
               : "l"(a), "l"(b));
}

// The ring between a warpgroup that copies and two that multiply (sm_90a).
//
// A block of 384 threads is persistent: it takes tiles of 128 x BN sums in turn. Warpgroup 0 fills
// slices of 64 columns (rows of 128 bytes, 128-byte swizzle) as they become empty; warpgroups 1 and
// 2 own 64 rows of the tile each and multiply slices as they become full. The copies of the next
// tile run while the last one is finished and stored. Barriers carry a parity: phase p of a stage
// ends when all its arrivals, and the bytes of its bulk copies, are in.
//
// A sum runs over k in ascending steps of 16 within one chain, as in tile.cuh, but the tensor cores
// of a warpgroup may round otherwise than those of a warp: results are the same for every tile and
// batch of this family, not across families.
#pragma once
#include "epilogue.cuh"

enum { SLICE = 64, SLICE_ROW = SLICE * 2, COPIERS = 128 };

template <i32 BN_, i32 STAGES_>
struct WideTile : Tile<128, BN_, 8, 1, STAGES_> {
  typedef Tile<128, BN_, 8, 1, STAGES_> Base;
  enum {
    A_SLICE = Base::BM * SLICE_ROW,
    B_SLICE = Base::BN * SLICE_ROW,
    STAGE = A_SLICE + B_SLICE,
    STAGED = Base::BM * (Base::BN * 2 + 16),
    BLOCK = COPIERS + Base::THREADS,
  };
  // Warps 4 to 7 own rows 64 to 127, warps 8 to 11 rows 0 to 63.
  static DEV i32 row(i32, i32 half) {
    return threadIdx.x / 32 % 8 * 16 + threadIdx.x % 32 / 4 + half * 8;
  }
  static DEV i32 column(i32 j) { return j * 8 + threadIdx.x % 4 * 2; }
  static DEV i32 thread() { return threadIdx.x - COPIERS; }
  static DEV void sync() { barrier_named(1, Base::THREADS); }
};

// Addresses in dynamic shared memory: the slices, the staged tile, the barriers.
template <class W>
struct Ring {
  u32 base;

  DEV u32 a(i32 stage) const { return base + stage * W::STAGE; }
  DEV u32 b(i32 stage) const { return a(stage) + W::A_SLICE; }
  DEV u32 staged() const { return base + W::STAGES * W::STAGE; }
  DEV u32 full(i32 stage) const { return staged() + W::STAGED + stage * 8; }
  DEV u32 empty(i32 stage) const { return full(W::STAGES + stage); }

  // `fillers` arrivals make a stage full, one of each multiplying warpgroup makes it empty.
  DEV void init(u32 fillers) const {
    if (threadIdx.x == 0) {
      for (i32 s = 0; s < W::STAGES; s++) {
        mbarrier_init(full(s), fillers);
        mbarrier_init(empty(s), W::THREADS / 128);
      }
      mbarrier_fence_init();
    }
    barrier_block();
  }
};

// A position in the ring, running on from tile to tile.
template <class W>
struct Turn {
  i32 stage = 0;
  u32 parity = 0;

  DEV void next() {
    if (++stage == W::STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Adds the products of `slices` slices to the sums of this warpgroup's 64 rows.
template <class W>
DEV void multiply_full(typename W::Sums& sums, const Ring<W>& ring, Turn<W>& turn, i32 slices) {
  const u32 rows = threadIdx.x / 128 % 2 * 64 * SLICE_ROW;
  const bool leader = threadIdx.x % 128 == 0;
  i32 before = 0;
  NO_UNROLL for (i32 s = 0; s < slices; s++) {
    mbarrier_wait(ring.full(turn.stage), turn.parity);
    wgmma_fence();
    UNROLL for (i32 k = 0; k < SLICE / 16; k++)
      wgmma(sums, matrix_descriptor(ring.a(turn.stage) + rows + k * 32),
            matrix_descriptor(ring.b(turn.stage) + k * 32));
    wgmma_commit();
    // One slice stays under way; the one before it has been read.
    wgmma_wait<1>();
    if (s > 0 && leader) mbarrier_arrive(ring.empty(before));
    before = turn.stage;
    turn.next();
  }
  wgmma_wait<0>();
  if (leader) mbarrier_arrive(ring.empty(before));
}

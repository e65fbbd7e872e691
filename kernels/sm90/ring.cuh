// How a block of the Hopper kernels is organised: tiles, warpgroups, shared memory, barriers.
//
// A block is persistent and takes tiles of 128 x BN sums in turn. Its warpgroups have roles:
//   0      one lane loads operands, one lane moves staged tiles (the rest of it waits);
//   1, 2   multiply and finish;
//   3      gathers a left operand that no tensor map can describe (gather.cu only).
// Warpgroups 1 and 2 are two teams with a tile each, so that one finishes its tile while the other
// multiplies (ping-pong); with BN = 256 they are one team, each with 64 of the 128 rows, because the
// sums of a whole tile would not fit one warpgroup's registers.
//
// Operands pass through a ring of stages, each a slice of 64 columns of both in rows of 128 bytes with
// 128-byte swizzle. A stage is `full` when its loader's arrival and all its bytes are in, and `empty`
// again when the team has read it. A team's result is staged as FP16 in panels of 64 columns in the
// same layout: `ready` says that the panels are free and hold the residual, `written` that they hold
// the result. Barriers carry a parity: it tells one use of a stage from the next, however often the
// ring goes round. Two uses apart look alike, so a team must not look at a stage before the one in
// between: it may `begin` a tile once the other team has seen all slices of the tile before it full.
//
// The two blocks of a cluster take tiles of the same filters, one above the other. Each loads half of
// the filters' slice into both, so a stage is empty only when both blocks have read theirs.
//
// A sum runs over k in ascending steps of 16 within one chain, as in tile.cuh, but the tensor cores
// of a warpgroup may round otherwise than those of a warp: results are the same for every tile, batch
// and cluster of this family, not across families.
#pragma once
#include "epilogue.cuh"
#include "sm90/dev.cuh"

enum { SLICE = 64, ROW_BYTES = SLICE * 2, GROUP = 128 };

template <i32 BN_, i32 STAGES_>
struct WideTile {
  enum {
    BM = 128,
    BN = BN_,
    STAGES = STAGES_,
    A_SLICE = BM * ROW_BYTES,
    B_SLICE = BN * ROW_BYTES,
    STAGE = A_SLICE + B_SLICE,
    PANEL = BM * ROW_BYTES,
    PANELS = BN / SLICE,
    TEAMS = BN > 128 ? 1 : 2,
    TEAM_GROUPS = 2 / TEAMS,
    TEAM_THREADS = TEAM_GROUPS * GROUP,
    FRAGS_M = BM / 64 / TEAM_GROUPS,
    FRAGS_N = BN / 8,
  };
  static_assert(STAGES >= 3, "one slice is read, one waited for, one under way");

  // Sums of a warpgroup: [i][j][2 half + e] is row 64 i + 16 warp + lane / 4 + 8 half of its rows,
  // column 8 j + lane mod 4 * 2 + e.
  typedef float Sums[FRAGS_M][FRAGS_N][4];
};

// What a product is, whatever its left operand.
struct Product {
  i32 rows;
  i32 positions;  // of one row
  i32 k;          // filters
  i32 taps;       // of a filter
  i32 columns;    // of a tap
  i32 by_map;     // sum of the two below
  i32 unused[10];
  TensorMap weight;    // [K, taps, columns], boxes BN / blocks of a cluster x 1 x 64
  TensorMap residual;  // [M, K], boxes 128 x 64
  TensorMap result;    // [M, K], boxes 128 x 64
  Epilogue epilogue;
  u64 unused_end;
};

enum { RESIDUAL_BY_MAP = 1, RESULT_BY_MAP = 2 };

DEV i32 slices_of_tap(const Product& p) { return (p.columns + SLICE - 1) / SLICE; }

// Which tiles this block takes. Those of one strip of positions lie next to each other.
template <class W>
struct Schedule {
  i32 peers, rank;  // blocks of the cluster, and which one this is
  i32 m_end, strips, count, first, step;

  DEV explicit Schedule(const Product& p) : peers(cluster_size()), rank(cluster_rank()) {
    const i32 height = W::BM * peers;
    m_end = p.rows * p.positions;
    strips = (p.k + W::BN - 1) / W::BN;
    count = (m_end + height - 1) / height * strips;
    first = blockIdx.x / peers;
    step = gridDim.x / peers;
  }

  // The last tiles of a cluster of two may begin below the last row.
  DEV i32 m0(i32 tile) const { return (tile / strips * peers + rank) * W::BM; }
  DEV i32 n0(i32 tile) const { return tile % strips * W::BN; }
};

// Addresses in dynamic shared memory: stages, staged tiles, barriers.
template <class W>
struct Ring {
  u32 base;

  DEV u32 a(i32 stage) const { return base + stage * W::STAGE; }
  DEV u32 b(i32 stage) const { return a(stage) + W::A_SLICE; }
  DEV u32 staged(i32 team) const { return a(W::STAGES) + team * W::PANELS * W::PANEL; }
  DEV u32 full(i32 stage) const { return staged(W::TEAMS) + stage * 8; }
  DEV u32 empty(i32 stage) const { return full(W::STAGES + stage); }
  DEV u32 ready(i32 team) const { return full(2 * W::STAGES + team); }
  DEV u32 written(i32 team) const { return ready(W::TEAMS + team); }
  DEV u32 begin(i32 team) const { return ready(2 * W::TEAMS + team); }

  // `loaders` arrivals make a stage full, one of each warpgroup that reads it makes it empty.
  DEV void init(u32 loaders) const {
    if (threadIdx.x == 0) {
      for (i32 s = 0; s < W::STAGES; s++) {
        mbarrier_init(full(s), loaders);
        mbarrier_init(empty(s), W::TEAM_GROUPS * cluster_size());
      }
      for (i32 team = 0; team < W::TEAMS; team++) {
        mbarrier_init(ready(team), 1);
        mbarrier_init(written(team), W::TEAM_THREADS);
        mbarrier_init(begin(team), 1);
      }
      mbarrier_fence_init();
    }
    barrier_cluster();
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

  // Passes over slices that are another team's.
  DEV void skip(i32 slices) {
    stage += slices;
    parity ^= stage / W::STAGES & 1;
    stage %= W::STAGES;
  }
};

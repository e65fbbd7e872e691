// What the warpgroups of a Hopper kernel do: load, multiply, finish, move.
#pragma once
#include "sm90/ring.cuh"

// Loads the slices of both operands in the order of the tiles. Of `Left`:
//   BYTES               of a slice that arrive through bulk copies of `copy`
//   start(m0)           begins a tile at row m0
//   copy(to, barrier, tap, c)   copies columns c .. c + 63 of a tap
template <class W, class Left>
DEV void load_tiles(const Product& p, const Ring<W>& ring, Left left) {
  const Schedule<W> tiles(p);
  const i32 per_block = W::BN / tiles.peers;
  Turn<W> turn;
  NO_UNROLL for (i32 tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    const i32 n0 = tiles.n0(tile);
    left.start(tiles.m0(tile));
    NO_UNROLL for (i32 tap = 0; tap < p.taps; tap++) {
      NO_UNROLL for (i32 c = 0; c < p.columns; c += SLICE) {
        const u32 full = ring.full(turn.stage);
        mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
        mbarrier_arrive_expect(full, Left::BYTES + W::B_SLICE);
        left.copy(ring.a(turn.stage), full, tap, c);
        if (tiles.peers == 1) {
          copy_box(ring.b(turn.stage), &p.weight, full, c, tap, n0);
        } else {
          const i32 first = tiles.rank * per_block;
          copy_box_to(ring.b(turn.stage) + first * ROW_BYTES, &p.weight, full, c, tap, n0 + first,
                      (1 << tiles.peers) - 1);
        }
        turn.next();
      }
    }
  }
}

// Adds the products of `slices` slices to the sums of this warpgroup, whose rows begin `offset`
// bytes into the left slice, and lets the other of two teams begin.
template <class W>
DEV void multiply_slices(typename W::Sums& sums, const Ring<W>& ring, Turn<W>& turn, i32 team,
                         u32 offset, i32 slices, i32 peers) {
  const i32 thread = threadIdx.x % GROUP;
  i32 before = 0;
  NO_UNROLL for (i32 s = 0; s < slices; s++) {
    mbarrier_wait(ring.full(turn.stage), turn.parity);
    wgmma_fence();
    UNROLL for (i32 k = 0; k < SLICE / 16; k++)
      UNROLL for (i32 i = 0; i < W::FRAGS_M; i++)
        wgmma(sums[i], matrix_descriptor(ring.a(turn.stage) + offset + i * 64 * ROW_BYTES + k * 32),
              matrix_descriptor(ring.b(turn.stage) + k * 32));
    wgmma_commit();
    // One slice stays under way; the one before it has been read.
    wgmma_wait<1>();
    if (s > 0 && thread < peers) mbarrier_arrive_at(ring.empty(before), thread);
    before = turn.stage;
    turn.next();
  }
  if (W::TEAMS == 2 && thread == 0) mbarrier_arrive(ring.begin(1 - team));
  wgmma_wait<0>();
  if (thread < peers) mbarrier_arrive_at(ring.empty(before), thread);
}

// Copies a staged tile to global memory where no tensor map can describe the result.
template <class W>
DEV void store_panels(const Sink& out, u32 staged, i32 m0, i32 n0, i32 m_end, i32 n_end, i32 team) {
  enum { PER_ROW = W::BN / CHUNK };
  barrier_named(1 + team, W::TEAM_THREADS);
  for (i32 i = threadIdx.x % W::TEAM_THREADS; i < W::BM * PER_ROW; i += W::TEAM_THREADS) {
    const i32 row = i / PER_ROW, chunk = i % PER_ROW, n = n0 + chunk * CHUNK;
    const i32 count = min(n_end - n, (i32)CHUNK);
    if (m0 + row >= m_end || count <= 0) continue;
    const u32 from = staged + chunk / 8 * W::PANEL + row * ROW_BYTES + (((chunk ^ row) & 7) << 4);
    u16* p = out.half + (size_t)(m0 + row) * out.half_pitch + n;
    if (count == CHUNK && aligned16(p)) {
      *(uint4*)p = load_shared16(from);
    } else {
      for (i32 c = 0; c < count; c++) p[c] = load_shared2(from + 2 * c);
    }
  }
}

// act(sums * scale + bias + residual) into the staged tile, and to an f32 output where there is one.
// `rows` is the first of this warpgroup's rows in the tile.
template <class W, i32 ACT_KIND, bool RESIDUAL>
DEV void stage_result(const typename W::Sums& sums, const Product& p, u32 staged, i32 m0, i32 n0,
                      i32 m_end, i32 rows) {
  const Epilogue& e = p.epilogue;
  const i32 lane = threadIdx.x % 32;
  const i32 top = rows + threadIdx.x / 32 % 4 * 16 + lane / 4, left = lane % 4 * 2;
  const bool staged_residual = p.by_map & RESIDUAL_BY_MAP;
  UNROLL for (i32 j = 0; j < W::FRAGS_N; j++) {
    // Panels that lie beyond the last filter hold nothing.
    if (n0 + j / 8 * SLICE >= p.k) continue;
    const i32 n = n0 + j * 8 + left;
    const bool in0 = n < p.k, in1 = n + 1 < p.k;
    const float scale0 = in0 ? e.scale[n] : 0.f, scale1 = in1 ? e.scale[n + 1] : 0.f;
    const float bias0 = in0 ? e.bias[n] : 0.f, bias1 = in1 ? e.bias[n + 1] : 0.f;
    // Rows of a thread differ by multiples of 8, so their chunks are permuted alike.
    const u32 column = staged + j / 8 * W::PANEL + (((j ^ top) & 7) << 4) + left * 2;
    UNROLL for (i32 i = 0; i < W::FRAGS_M; i++) {
      UNROLL for (i32 half = 0; half < 2; half++) {
        const i32 row = top + i * 64 + half * 8, m = m0 + row;
        const u32 place = column + row * ROW_BYTES;
        float v0 = sums[i][j][2 * half] * scale0 + bias0;
        float v1 = sums[i][j][2 * half + 1] * scale1 + bias1;
        if (RESIDUAL && staged_residual) {
          const u32 pair = load_shared4(place);
          v0 += low_half(pair);
          v1 += high_half(pair);
        } else if (RESIDUAL && m < m_end) {
          const u16* residual = e.residual + m * e.residual_pitch + n;
          if (in0) v0 += half_to_float(residual[0]);
          if (in1) v1 += half_to_float(residual[1]);
        }
        v0 = activate<ACT_KIND>(v0);
        v1 = activate<ACT_KIND>(v1);
        store_shared4(place, pack_halves(v0, v1));
        if (e.out.full && m < m_end) {
          float* out = e.out.full + (size_t)m * e.out.full_pitch + n;
          if (in0) out[0] = v0;
          if (in1) out[1] = v1;
        }
      }
    }
  }
}

// Multiplies and finishes the tiles of this warpgroup's team.
template <class W, i32 ACT_KIND, bool RESIDUAL>
DEV void multiply_tiles(const Product& p, const Ring<W>& ring) {
  const Schedule<W> tiles(p);
  const i32 group = threadIdx.x / GROUP - 1;
  const i32 team = W::TEAMS == 2 ? group : 0, rows = W::TEAMS == 2 ? 0 : group * 64;
  const i32 slices = p.taps * slices_of_tap(p);
  const u32 staged = ring.staged(team);
  Turn<W> turn;
  turn.skip(team * slices);
  u32 parity = 0;
  NO_UNROLL for (i32 tile = tiles.first + team * tiles.step; tile < tiles.count;
                 tile += W::TEAMS * tiles.step) {
    const i32 m0 = tiles.m0(tile), n0 = tiles.n0(tile);
    typename W::Sums sums;
    UNROLL for (i32 i = 0; i < W::FRAGS_M; i++)
      UNROLL for (i32 j = 0; j < W::FRAGS_N; j++)
        UNROLL for (i32 e = 0; e < 4; e++) sums[i][j][e] = 0.f;
    // The first team begins with nobody before it.
    if (W::TEAMS == 2) mbarrier_wait(ring.begin(team), parity ^ 1 ^ team);
    multiply_slices<W>(sums, ring, turn, team, rows * ROW_BYTES, slices, tiles.peers);
    mbarrier_wait(ring.ready(team), parity);
    stage_result<W, ACT_KIND, RESIDUAL>(sums, p, staged, m0, n0, tiles.m_end, rows);
    if (p.epilogue.out.half && !(p.by_map & RESULT_BY_MAP))
      store_panels<W>(p.epilogue.out, staged, m0, n0, tiles.m_end, p.k, team);
    fence_async_proxy();
    mbarrier_arrive(ring.written(team));
    turn.skip((W::TEAMS - 1) * slices);
    parity ^= 1;
  }
}

// Panels of a tile that hold columns of the result.
template <class W>
DEV i32 panels_of(const Product& p, i32 n0) {
  return min((p.k - n0 + SLICE - 1) / SLICE, (i32)W::PANELS);
}

// Hands the panels of a team to its next tile, with the residual where there is one.
template <class W, bool RESIDUAL>
DEV void offer_panels(const Product& p, const Ring<W>& ring, i32 team, i32 m0, i32 n0) {
  const u32 ready = ring.ready(team), staged = ring.staged(team);
  if (!RESIDUAL || !(p.by_map & RESIDUAL_BY_MAP)) {
    mbarrier_arrive(ready);
    return;
  }
  const i32 panels = panels_of<W>(p, n0);
  mbarrier_arrive_expect(ready, panels * W::PANEL);
  NO_UNROLL for (i32 i = 0; i < panels; i++)
    copy_box(staged + i * W::PANEL, &p.residual, ready, n0 + i * SLICE, m0);
}

// Stores the tiles as they are staged, and fetches the residuals of later ones.
template <class W, bool RESIDUAL>
DEV void move_tiles(const Product& p, const Ring<W>& ring) {
  const Schedule<W> tiles(p);
  for (i32 team = 0; team < W::TEAMS; team++) {
    const i32 tile = tiles.first + team * tiles.step;
    if (tile < tiles.count)
      offer_panels<W, RESIDUAL>(p, ring, team, tiles.m0(tile), tiles.n0(tile));
  }
  i32 team = 0;
  u32 parity = 0;
  NO_UNROLL for (i32 tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    const i32 m0 = tiles.m0(tile), n0 = tiles.n0(tile), next = tile + W::TEAMS * tiles.step;
    mbarrier_wait(ring.written(team), parity);
    if (p.by_map & RESULT_BY_MAP) {
      NO_UNROLL for (i32 i = 0; i < panels_of<W>(p, n0); i++)
        store_box(&p.result, ring.staged(team) + i * W::PANEL, n0 + i * SLICE, m0);
      store_commit();
      store_wait_read();
    }
    if (next < tiles.count)
      offer_panels<W, RESIDUAL>(p, ring, team, tiles.m0(next), tiles.n0(next));
    if (++team == W::TEAMS) {
      team = 0;
      parity ^= 1;
    }
  }
}

// The work of warpgroup 0.
template <class W, bool RESIDUAL, class Left>
DEV void load_and_move(const Product& p, const Ring<W>& ring, const Left& left) {
  const i32 warp = threadIdx.x / 32;
  if (warp == 0 && elect_lane()) {
    prefetch_map(&p.weight);
    load_tiles<W>(p, ring, left);
  } else if (warp == 1 && elect_lane()) {
    if (p.by_map & RESIDUAL_BY_MAP) prefetch_map(&p.residual);
    if (p.by_map & RESULT_BY_MAP) prefetch_map(&p.result);
    move_tiles<W, RESIDUAL>(p, ring);
  }
}

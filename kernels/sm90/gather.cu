// Convolution on Hopper whose left operand is gathered by threads: conv2d.cu for the shapes that the
// copy engine cannot cut out (im2col mode, see sm90/conv2d.cu) or would fill with zeros.
//
//   y[b, p, q, k] = act(scale[k] * (sum over r, s, c of
//       x[b, p stride + r dilation - pad, q stride + s dilation - pad, c] w[k, r, s, c])
//       + bias[k] + residual[b, p, q, k])
//
// Shapes and layouts as conv2d.cu; maps as ring.cuh, the filters as one tap of R S C' columns. The left
// matrix is gathered 16 bytes at a time by a warpgroup of its own, written in the swizzle of the ring,
// and handed over once its copies have landed, LAG slices later. Any window and channel count is a
// different address, nothing more, and columns are dense: c, then s, then r.
//
// Block: 512 threads, persistent over tiles of 128 positions x CFG_TILE_N filters (see ring.cuh).
// Grid: at most one block a multiprocessor, in clusters of one or two.
// Dynamic shared memory: CFG_STAGES * (128 + CFG_TILE_N) * 128 bytes of stages, 128 * CFG_TILE_N * 2
// for the staged tile of each team (two teams up to CFG_TILE_N = 128, else one), and of barriers
// 16 for each stage and 24 for each team.
// 2 B P Q K R S C FLOP; at least 2 (B H W C + K R S C + B P Q K) bytes (+ 2 B P Q K with a residual).
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Chetlur et al. 2014 (arXiv:1410.0759); PTX ISA, chapters on cp.async, mbarrier and wgmma.
#include "sm90/roles.cuh"

typedef WideTile<CFG_TILE_N, CFG_STAGES> W;

// A slice is emptied only once the next one is full, so two stages must lie between the slice that
// is handed over and the one whose copies begin: a larger LAG would wait for itself.
enum {
  CHUNKS_OF_ROW = SLICE / CHUNK,
  GATHERED = W::BM * CHUNKS_OF_ROW / GROUP,
  LAG = CFG_STAGES - 2 < 4 ? CFG_STAGES - 2 : 4,
};

struct GatherParams {
  Product product;
  const u16* x;
  i32 h, w, c;   // of x
  i32 p, q;      // of y
  i32 pitch;     // of x
  i32 c_padded;  // C'
  i32 kernel_h, kernel_w;
  i32 stride_h, stride_w;
  i32 pad_h, pad_w;
  i32 dilation_h, dilation_w;
  i32 unused[15];
};

// Nothing of the left operand comes by bulk copies.
struct Gathered {
  enum { BYTES = 0 };
  DEV void start(i32) { }
  DEV void copy(u32, u32, i32, i32) { }
};

// A gathering thread's chunk column, and the output positions it gathers for.
struct Gather {
  const GatherParams& p;
  i32 r, s, c;
  i32 top[GATHERED], left[GATHERED], pixel[GATHERED];

  DEV Gather(const GatherParams& p, i32 m0, i32 m) : p(p), r(0), s(0) {
    UNROLL for (i32 i = 0; i < GATHERED; i++) {
      const i32 position = m0 + row(i), line = position / p.q, image = line / p.p;
      top[i] = line % p.p * p.stride_h - p.pad_h;
      left[i] = position % p.q * p.stride_w - p.pad_w;
      pixel[i] = (image * p.h + top[i]) * p.w + left[i];
      if (position >= m) top[i] = -(1 << 30);
    }
    c = threadIdx.x % CHUNKS_OF_ROW * CHUNK;
    settle();
  }

  static DEV i32 row(i32 i) {
    return threadIdx.x % GROUP / CHUNKS_OF_ROW + i * (GROUP / CHUNKS_OF_ROW);
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
    const i32 chunk = threadIdx.x % CHUNKS_OF_ROW;
    const i32 down = r * p.dilation_h, right = s * p.dilation_w;
    const i32 bytes = r < p.kernel_h ? min(p.c - c, (i32)CHUNK) * 2 : 0;
    UNROLL for (i32 i = 0; i < GATHERED; i++) {
      const bool inside = (u32)(top[i] + down) < (u32)p.h && (u32)(left[i] + right) < (u32)p.w;
      const bool read = inside && bytes > 0;
      const u16* from = p.x + (read ? (size_t)(pixel[i] + down * p.w + right) * p.pitch + c : 0);
      copy_async16(slice + row(i) * ROW_BYTES + ((chunk ^ (row(i) & 7)) << 4), from, read ? bytes : 0);
    }
    c += SLICE;
    settle();
  }
};

// This thread's copies of a slice have landed: lets the tensor cores see them and says so.
DEV void hand_over(const Ring<W>& ring, Turn<W>& landed) {
  fence_async_proxy();
  mbarrier_arrive(ring.full(landed.stage));
  landed.next();
}

DEV void gather_tiles(const GatherParams& p, const Ring<W>& ring) {
  const Schedule<W> tiles(p.product);
  const i32 slices = slices_of_tap(p.product);
  Turn<W> turn, landed;
  i32 under_way = 0;
  NO_UNROLL for (i32 tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    Gather a(p, tiles.m0(tile), tiles.m_end);
    NO_UNROLL for (i32 s = 0; s < slices; s++) {
      mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
      a.copy(ring.a(turn.stage));
      copy_commit();
      turn.next();
      if (under_way == LAG) {
        copy_wait<LAG>();
        hand_over(ring, landed);
      } else {
        under_way++;
      }
    }
  }
  copy_wait<0>();
  for (; under_way > 0; under_way--) hand_over(ring, landed);
}

KERNEL BOUNDS(512, 1) gather_sm90(PARAM GatherParams p) {
  const Ring<W> ring{shared_address(dynamic_shared)};
  ring.init(1 + GROUP);
  if (threadIdx.x < GROUP) {
    registers_shrink<24>();
    load_and_move<W, CFG_RESIDUAL>(p.product, ring, Gathered());
  } else if (threadIdx.x < 3 * GROUP) {
    registers_grow<200>();
    multiply_tiles<W, CFG_ACT, CFG_RESIDUAL>(p.product, ring);
  } else {
    registers_shrink<88>();
    gather_tiles(p, ring);
  }
  // A block of a cluster writes to the other's barriers and stages: neither may leave before both are done.
  barrier_cluster();
}

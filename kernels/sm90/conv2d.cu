// Convolution as an implicit matrix product on Hopper: conv2d.cu by warpgroup products.
//
//   y[b, p, q, k] = act(scale[k] * (sum over r, s, c of
//       x[b, p stride + r dilation - pad, q stride + s dilation - pad, c] w[k, r, s, c])
//       + bias[k] + residual[b, p, q, k])
//
// Shapes and layouts as conv2d.cu. The filters come through a tensor map of boxes 64 x CFG_TILE_N in
// 128-byte swizzle; the left matrix is gathered 16 bytes at a time by a whole warpgroup of copying
// threads, written in the same swizzle, and handed over once its copies have landed, LAG slices
// later. Any stride, dilation and channel count is a different address, nothing more.
//
// Block: 384 threads, persistent over tiles of 128 positions x CFG_TILE_N filters (see ring.cuh).
// Grid: at most one block a multiprocessor.
// Dynamic shared memory: CFG_STAGES * (128 + CFG_TILE_N) * 128 + 128 * (CFG_TILE_N * 2 + 16)
// + CFG_STAGES * 16 bytes.
// 2 B P Q K R S C FLOP; at least 2 (B H W C + K R S C + B P Q K) bytes.
// Relative L2 error at most 5e-4 against f64; exact on small integers.
// Chetlur et al. 2014 (arXiv:1410.0759); PTX ISA, chapters on mbarrier and wgmma.
#include "sm90/ring.cuh"

typedef WideTile<CFG_TILE_N, CFG_STAGES> W;

// A slice is emptied only once the next one is full, so two stages must lie between the slice that
// is handed over and the one whose copies begin: a larger LAG would wait for itself.
enum {
  CHUNKS_OF_ROW = SLICE / CHUNK,
  GATHERED = W::BM * CHUNKS_OF_ROW / COPIERS,
  LAG = CFG_STAGES - 2,
};
static_assert(LAG >= 1, "a ring of three stages or more");

struct WideConv2dParams {
  i32 rows;
  i32 h, w, c;  // of x
  i32 p, q, k;  // of y
  i32 kernel_h, kernel_w;
  i32 stride_h, stride_w;
  i32 pad_h, pad_w;
  i32 dilation_h, dilation_w;
  i32 pitch;  // of x
  TensorMap weight;
  const u16* x;
  i32 c_padded;  // C'
  i32 unused;
  Epilogue epilogue;
  u64 unused_end[7];
};

// A copying thread's chunk column, and the output positions it gathers for.
struct Gather {
  const WideConv2dParams& p;
  i32 r, s, c;
  i32 top[GATHERED], left[GATHERED], pixel[GATHERED];

  DEV Gather(const WideConv2dParams& p, i32 m0, i32 m) : p(p), r(0), s(0) {
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
    return threadIdx.x / CHUNKS_OF_ROW + i * (COPIERS / CHUNKS_OF_ROW);
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
      copy_async16(slice + row(i) * SLICE_ROW + ((chunk ^ (row(i) & 7)) << 4), from, read ? bytes : 0);
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

DEV void copy_tiles(const WideConv2dParams& p, const Ring<W>& ring, i32 m, i32 tiles, i32 strips) {
  const i32 columns = p.kernel_h * p.kernel_w * p.c_padded;
  Turn<W> turn, landed;
  i32 under_way = 0;
  NO_UNROLL for (i32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const i32 n0 = tile % strips * W::BN;
    Gather a(p, tile / strips * W::BM, m);
    NO_UNROLL for (i32 k = 0; k < columns; k += SLICE) {
      mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(ring.full(turn.stage), W::B_SLICE);
        tensor_copy(ring.b(turn.stage), &p.weight, ring.full(turn.stage), k, n0);
      }
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

KERNEL BOUNDS(W::BLOCK, 1) conv2d_sm90(PARAM WideConv2dParams p) {
  const Ring<W> ring{shared_address(dynamic_shared)};
  const i32 m = p.rows * p.p * p.q, strips = (p.k + W::BN - 1) / W::BN;
  const i32 tiles = (m + W::BM - 1) / W::BM * strips;
  const i32 columns = p.kernel_h * p.kernel_w * p.c_padded;
  ring.init(COPIERS + 1);
  if (threadIdx.x < COPIERS) {
    registers_shrink<88>();
    copy_tiles(p, ring, m, tiles, strips);
  } else {
    registers_grow<208>();
    Turn<W> turn;
    NO_UNROLL for (i32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      W::Sums sums;
      clear<W>(sums);
      multiply_full<W>(sums, ring, turn, (columns + SLICE - 1) / SLICE);
      finish<W, CFG_ACT, CFG_RESIDUAL>(sums, p.epilogue, ring.staged(), tile / strips * W::BM,
                                       tile % strips * W::BN, m, p.k);
      W::sync();
    }
  }
}

//! Vision transformers by timm's keys, in the sizes of published pathology encoders.

use super::{Made, PUBLISHED_WIDTH};

/// Side in pixels of the pictures that position embeddings are made for.
const TRAINED_SIDE: usize = 224;

/// The size of a vision transformer.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Size and patch: `vit_b16`.
    pub name: &'static str,
    /// D.
    width: usize,
    blocks: usize,
    heads: usize,
    /// Pixels of a side of a patch.
    pub patch: usize,
    /// Channels between the two layers of the MLP.
    hidden: usize,
    /// Whether the MLP is gated (SwiGLU).
    gated: bool,
    registers: usize,
    /// Whether what a block adds is scaled by channel (LayerScale).
    layer_scale: bool,
    /// What becomes the feature vector, as recipes say it.
    pool: &'static str,
}

/// A plain transformer: the class token, an MLP four times as wide.
const fn plain(name: &'static str, [width, blocks, heads, patch]: [usize; 4]) -> Transformer {
    Transformer {
        name,
        width,
        blocks,
        heads,
        patch,
        hidden: 4 * width,
        gated: false,
        registers: 0,
        layer_scale: false,
        pool: "class",
    }
}

/// As DINOv2 trains the largest.
const fn gated(
    name: &'static str,
    size: [usize; 4],
    hidden: usize,
    registers: usize,
) -> Transformer {
    Transformer { hidden, gated: true, registers, layer_scale: true, ..plain(name, size) }
}

/// Every size: width, blocks, heads, patch.
pub const TRANSFORMERS: &[Transformer] = &[
    plain("vit_s16", [384, 12, 6, 16]),
    plain("vit_s8", [384, 12, 6, 8]),
    plain("vit_b16", [768, 12, 12, 16]),
    plain("vit_b8", [768, 12, 12, 8]),
    plain("vit_l16", [1024, 24, 16, 16]),
    Transformer { registers: 4, layer_scale: true, ..plain("vit_l14", [1024, 24, 16, 14]) },
    // Virchow2.
    Transformer { pool: "class-mean", ..gated("vit_h14", [1280, 32, 16, 14], 3416, 4) },
    // UNI2-h, H-optimus, Prov-GigaPath.
    gated("vit_g14", [1536, 24, 24, 14], 4096, 8),
    gated("vit_g14_deep", [1536, 40, 24, 14], 4096, 4),
    gated("vit_g16", [1536, 40, 24, 16], 4096, 0),
];

impl Transformer {
    /// With fewer heads of the same width, where `width` is less than [`PUBLISHED_WIDTH`].
    pub fn narrowed(&self, width: usize) -> Transformer {
        let heads = (self.heads * width / PUBLISHED_WIDTH).max(1);
        let scaled = |n: usize| n * heads / self.heads;
        let (width, hidden) = (scaled(self.width), scaled(self.hidden));
        Transformer { width, hidden, heads, ..self.clone() }
    }

    /// The lines of its recipe.
    pub fn recipe(&self) -> String {
        format!("[encoder.vit]\nheads = {}\npool = \"{}\"\n", self.heads, self.pool)
    }
}

impl Made {
    pub fn of_transformer(vit: &Transformer, seed: u64) -> Made {
        let mut made = Made::new(PUBLISHED_WIDTH, seed);
        made.transformer(vit);
        made
    }

    fn transformer(&mut self, vit: &Transformer) {
        let &Transformer { width, patch, registers, .. } = vit;
        self.uniform_f16(
            "patch_embed.proj",
            vec![width, 3, patch, patch],
            1.0 / (3 * patch * patch) as f32,
        );
        self.bias("patch_embed.proj", width);
        self.table("cls_token", vec![1, 1, width], 0.0, 1.0);
        // With registers, position embeddings are of patches alone, as in timm.
        let patches = (TRAINED_SIDE / patch).pow(2);
        let covered = if registers > 0 { patches } else { patches + 1 };
        self.table("pos_embed", vec![1, covered, width], 0.0, 1.0);
        if registers > 0 {
            self.table("reg_token", vec![1, registers, width], 0.0, 1.0);
        }
        for block in 0..vit.blocks {
            self.transformer_block(vit, &format!("blocks.{block}"));
        }
        self.layer_norm("norm", width);
    }

    fn transformer_block(&mut self, vit: &Transformer, name: &str) {
        let &Transformer { width, hidden, .. } = vit;
        self.layer_norm(&format!("{name}.norm1"), width);
        self.linear(&format!("{name}.attn.qkv"), [3 * width, width]);
        self.linear(&format!("{name}.attn.proj"), [width, width]);
        self.layer_norm(&format!("{name}.norm2"), width);
        let first = if vit.gated { 2 * hidden } else { hidden };
        self.linear(&format!("{name}.mlp.fc1"), [first, width]);
        self.linear(&format!("{name}.mlp.fc2"), [width, hidden]);
        if vit.layer_scale {
            for part in ["ls1", "ls2"] {
                self.vector(&format!("{name}.{part}.gamma"), width, 0.5, 0.1);
            }
        }
    }

    fn layer_norm(&mut self, name: &str, n: usize) {
        self.vector(&format!("{name}.weight"), n, 1.0, 0.25);
        self.bias(name, n);
    }
}

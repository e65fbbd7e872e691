//! What the tensors of known checkpoints are called, and what they are called in a package.
//!
//! A layout is one function from a state-dict key to its [`Fate`]. It decides by name alone; that
//! every tensor has its place and its shape is checked by building the model afterwards.

use super::{Tensors, inception};
use crate::error::Result;

/// Why the last layer of a pretrained network is left out.
const CLASSIFIER: &str = "the classifier of the pretraining";

/// What becomes of one tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes into the encoder under this name.
    Encoder(String),
    /// It goes into the head under this name.
    Head(String),
    /// It goes into the segmenter under this name.
    Segmenter(String),
    /// It is not needed for inference, for this reason.
    Drop(&'static str),
    /// The layout does not know it.
    Unknown,
}

/// How a checkpoint names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A torchvision classifier: the encoder and a classifier that is dropped.
    Torchvision,
    /// BALNMP: `image_feature_extractor`, `attention_aggregator` and `classifier`.
    Balnmp,
    /// HistCode's AdCo training: two encoders, a projection head and negatives.
    HistcodeEncoder,
    /// CLAM_SB, CLAM_MB and HistCode's regressions.
    Clam,
    /// Attention MIL by its authors' names.
    Abmil,
    /// The last layer of a classifier or regression, whose encoder is imported on its own.
    LastLayer,
    /// Keras's Inception V3, its layers by rank.
    KerasInception,
    /// A segmentation network under the names of its family.
    Segmenter,
    /// A vision transformer by the keys of timm, DINOv2, transformers or CONCH.
    Vit,
}

impl Layout {
    /// The layout that a `--family` of the import names; a torchvision family for the rest.
    pub fn of_family(family: &str) -> Layout {
        match family {
            "balnmp" => Layout::Balnmp,
            "histcode-encoder" => Layout::HistcodeEncoder,
            "clam-sb" | "clam-mb" | "clam-sb-pool" | "clam-sb-nn-pool" => Layout::Clam,
            "abmil" => Layout::Abmil,
            "tile-linear" | "pool-linear" => Layout::LastLayer,
            "inception_v3_keras" => Layout::KerasInception,
            "unet" | "nested-unet" => Layout::Segmenter,
            _ if family.starts_with("smp-") || family.starts_with("deeplabv3_") => {
                Layout::Segmenter
            }
            "vit" => Layout::Vit,
            _ => Layout::Torchvision,
        }
    }

    /// What becomes of the tensor `key`.
    pub fn fate(self, key: &str) -> Fate {
        // nn.DataParallel inserts `module.` wherever it wraps.
        let key = key.replace("module.", "");
        if key.ends_with(".num_batches_tracked") {
            return Fate::Drop("a counter of training");
        }
        match self {
            Layout::Torchvision => torchvision(&key),
            Layout::Balnmp => balnmp(&key),
            Layout::HistcodeEncoder => histcode_encoder(&key),
            Layout::Clam => clam(&key),
            Layout::Abmil => abmil(&key),
            Layout::LastLayer => last_layer(&key),
            Layout::KerasInception => keras_inception(&key),
            Layout::Segmenter => segmenter(&key),
            Layout::Vit => vit(&key),
        }
    }
}

fn torchvision(key: &str) -> Fate {
    if key.starts_with("classifier.") || key.starts_with("fc.") {
        return Fate::Drop(CLASSIFIER);
    }
    if ["AuxLogits.", "aux1.", "aux2."].iter().any(|aux| key.starts_with(aux)) {
        return Fate::Drop("a classifier for training only");
    }
    Fate::Encoder(dense_layer(key))
}

/// The first DenseNet checkpoints have `norm.1` where later ones have `norm1`.
fn dense_layer(key: &str) -> String {
    let old = [
        ("norm.1.", "norm1."),
        ("conv.1.", "conv1."),
        ("norm.2.", "norm2."),
        ("conv.2.", "conv2."),
    ];
    match old
        .iter()
        .find(|(old, _)| key.contains(".denselayer") && key.contains(&format!(".{old}")))
    {
        Some((old, new)) => key.replace(&format!(".{old}"), &format!(".{new}")),
        None => key.into(),
    }
}

fn keras_inception(key: &str) -> Fate {
    if key.starts_with("predictions.") {
        return Fate::Drop(CLASSIFIER);
    }
    if key.starts_with("Conv2d_") || key.starts_with("Mixed_") {
        return Fate::Encoder(key.into());
    }
    inception::torchvision_name(key).map_or(Fate::Unknown, Fate::Encoder)
}

/// Old files of segmentation_models_pytorch number the parts of DeepLabV3's decoder.
fn segmenter(key: &str) -> Fate {
    if key.starts_with("aux_classifier.") || key.starts_with("classification_head.") {
        return Fate::Drop("a classifier beside the segmentation");
    }
    let numbered = [
        ("decoder.0.", "decoder.aspp."),
        ("decoder.1.", "decoder.conv."),
        ("decoder.2.", "decoder.bn."),
    ];
    for (old, new) in numbered {
        if let Some(rest) = key.strip_prefix(old) {
            return Fate::Segmenter(format!("{new}{rest}"));
        }
    }
    Fate::Segmenter(dense_layer(key))
}

fn balnmp(key: &str) -> Fate {
    if let Some(rest) = key.strip_prefix("image_feature_extractor.") {
        return balnmp_backbone(rest.strip_prefix("extractor.").unwrap_or(rest));
    }
    if key.starts_with("attention_aggregator.") || key.starts_with("classifier.") {
        return Fate::Head(key.into());
    }
    Fate::Unknown
}

/// BALNMP's backbones are the children of a torchvision network without the last, in order and
/// numbered, but for the two Inceptions, which keep their names and lose what follows the pooling.
fn balnmp_backbone(key: &str) -> Fate {
    const AUXILIARY: [&str; 3] = ["AuxLogits.", "aux1.", "aux2."];
    if AUXILIARY.iter().any(|aux| key.starts_with(aux)) {
        return Fate::Drop("a classifier for training only");
    }
    if key.starts_with("fc.") {
        return Fate::Drop(CLASSIFIER);
    }
    let Some((child, rest)) = key.split_once('.') else { return Fate::Unknown };
    let numbered = rest.starts_with(|c: char| c.is_ascii_digit());
    let dense = ["conv0.", "norm0.", "denseblock", "transition", "norm5."];
    match child {
        "0" if numbered => Fate::Encoder(format!("features.{rest}")),
        "0" if dense.iter().any(|part| rest.starts_with(part)) => {
            Fate::Encoder(dense_layer(&format!("features.{rest}")))
        }
        "0" if rest == "weight" => Fate::Encoder("conv1.weight".into()),
        "1" if !rest.contains('.') => Fate::Encoder(format!("bn1.{rest}")),
        "4" | "5" | "6" | "7" if numbered => {
            let stage = child.parse::<u32>().unwrap_or_default() - 3;
            Fate::Encoder(format!("layer{stage}.{rest}"))
        }
        "conv1" | "conv2" | "conv3" => Fate::Encoder(key.into()),
        _ if ["Conv2d_", "Mixed_", "inception"].iter().any(|p| child.starts_with(p)) => {
            Fate::Encoder(key.into())
        }
        _ => Fate::Unknown,
    }
}

fn histcode_encoder(key: &str) -> Fate {
    if key.starts_with("encoder_k.") {
        return Fate::Drop("the momentum encoder");
    }
    match key.strip_prefix("encoder_q.") {
        Some(rest) if rest.starts_with("fc.") => Fate::Drop("the projection head"),
        Some(rest) => Fate::Encoder(rest.into()),
        None if key.starts_with("queue") => Fate::Drop("negatives of the training"),
        None => Fate::Unknown,
    }
}

fn clam(key: &str) -> Fate {
    let first = key.split('.').next().unwrap_or_default();
    match first {
        "instance_classifiers" => Fate::Drop("instance clustering, for training only"),
        "instance_loss_fn" => Fate::Drop("a loss, for training only"),
        "attention_net" | "classifiers" => Fate::Head(key.into()),
        // The hidden layer of HistCode's variant without attention.
        "fc" if key.starts_with("fc.0.") => Fate::Head(key.into()),
        _ => Fate::Unknown,
    }
}

fn abmil(key: &str) -> Fate {
    const HEAD: [&str; 5] =
        ["attention.", "attention_V.", "attention_U.", "attention_w.", "classifier."];
    match key {
        _ if HEAD.iter().any(|p| key.starts_with(p)) => Fate::Head(key.into()),
        _ if key.starts_with("feature_extractor_part2.0.") => Fate::Head(key.into()),
        _ if key.starts_with("feature_extractor_part1.") => Fate::Drop("the encoder"),
        _ => Fate::Unknown,
    }
}

fn last_layer(key: &str) -> Fate {
    match ["fc.", "head.", "classifier."].iter().any(|p| key.starts_with(p)) {
        true => Fate::Head(key.into()),
        false => Fate::Drop("the encoder, which is imported by its own family"),
    }
}

/// The names of CONCH's two towers around a vision transformer, then the transformer itself.
fn vit(key: &str) -> Fate {
    const PARTS: [(&str, &str); 3] = [
        ("attn_pool_contrast.", "attn_pool."),
        ("ln_contrast.", "attn_pool.ln_out."),
        ("trunk.", ""),
    ];
    if key.starts_with("text") || key == "logit_scale" {
        return Fate::Drop("the text tower");
    }
    let key = key.strip_prefix("visual.").unwrap_or(key);
    if key.starts_with("proj_contrast") {
        return Fate::Drop("the projection to the space shared with text");
    }
    if key.starts_with("attn_pool_caption.") || key.starts_with("ln_caption.") {
        return Fate::Drop("the pooling for captions");
    }
    for (from, to) in PARTS {
        match key.strip_prefix(from) {
            Some(rest) if to.is_empty() => return transformer(rest),
            Some(rest) => return Fate::Encoder(format!("{to}{rest}")),
            None => {}
        }
    }
    transformer(key)
}

/// timm's names, and what others call the same tensors.
fn transformer(key: &str) -> Fate {
    const TOP: [(&str, &str); 6] = [
        ("register_tokens", "reg_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("layernorm.", "norm."),
    ];
    if let Some((block, rest)) = block(key) {
        return Fate::Encoder(format!("blocks.{block}.{}", inside_block(rest)));
    }
    if key.ends_with("mask_token") {
        return Fate::Drop("a token of the pretraining");
    }
    if ["head.", "head_dist.", "pooler."].iter().any(|p| key.starts_with(p)) {
        return Fate::Drop(CLASSIFIER);
    }
    let renamed =
        TOP.iter().find_map(|(from, to)| Some(format!("{to}{}", key.strip_prefix(from)?)));
    let own = ["cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "norm."];
    match renamed {
        Some(name) => Fate::Encoder(name),
        None if own.iter().any(|p| key.starts_with(p)) || key.starts_with("fc_norm.") => {
            Fate::Encoder(key.into())
        }
        None => Fate::Unknown,
    }
}

/// The number of the block a key belongs to, and the rest of the key.
fn block(key: &str) -> Option<(usize, &str)> {
    let rest = ["blocks.", "encoder.layer.", "encoder.layers.", "layers.", "layer."]
        .iter()
        .find_map(|prefix| key.strip_prefix(prefix))?;
    let (first, rest) = rest.split_once('.')?;
    // DINOv2 trained in shards writes `blocks.<shard>.<block>`.
    match rest.split_once('.') {
        Some((second, rest)) if second.parse::<usize>().is_ok() => {
            Some((second.parse().ok()?, rest))
        }
        _ => Some((first.parse().ok()?, rest)),
    }
}

/// What timm calls a tensor of a block.
fn inside_block(rest: &str) -> String {
    const NAMES: [(&str, &str); 21] = [
        ("attention.attention.query.", "attn.q."),
        ("attention.attention.key.", "attn.k."),
        ("attention.attention.value.", "attn.v."),
        ("attention.output.dense.", "attn.proj."),
        ("attention.q_proj.", "attn.q."),
        ("attention.k_proj.", "attn.k."),
        ("attention.v_proj.", "attn.v."),
        ("attention.o_proj.", "attn.proj."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("mlp.weights_in.", "mlp.fc1."),
        ("mlp.weights_out.", "mlp.fc2."),
        ("mlp.w12.", "mlp.fc1."),
        ("mlp.w3.", "mlp.fc2."),
        ("mlp.down_proj.", "mlp.fc2."),
        ("mlp.gate_proj.", "mlp.gate."),
        ("mlp.up_proj.", "mlp.value."),
    ];

    let renamed =
        NAMES.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)));
    renamed.unwrap_or_else(|| rest.to_string())
}

/// The tensors of a whole classifier, encoder and last layer in one, the last layer as `fc`; the rest
/// as [`sort`] does.
///
/// # Errors
/// As [`sort`].
pub fn sort_classifier(checkpoint: &Tensors, layout: Layout) -> Result<Sorted> {
    let last = |key: &str| {
        let key = key.replace("module.", "");
        let (_, part) = key.rsplit_once('.').unwrap_or(("", &key));
        (layout.fate(&key) == Fate::Drop(CLASSIFIER)).then(|| Fate::Encoder(format!("fc.{part}")))
    };
    let fate = |key: &str| last(key).unwrap_or_else(|| layout.fate(key));
    sort_by(checkpoint, &fate)
}

/// A checkpoint sorted by a layout.
#[derive(Debug)]
pub struct Sorted {
    /// Tensors of the encoder under their package names.
    pub encoder: Tensors,
    /// Tensors of the head under their package names.
    pub head: Tensors,
    /// Tensors of the segmenter under their package names.
    pub segmenter: Tensors,
    /// Every tensor of the checkpoint and what became of it.
    pub fates: Vec<(String, Fate)>,
}

/// Sorts the tensors of a checkpoint.
///
/// # Errors
/// [`crate::Kind::Weights`] when two tensors would get the same name.
pub fn sort(checkpoint: &Tensors, layout: Layout) -> Result<Sorted> {
    sort_by(checkpoint, &|key| layout.fate(key))
}

fn sort_by(checkpoint: &Tensors, fate: &dyn Fn(&str) -> Fate) -> Result<Sorted> {
    let fates = checkpoint.names().map(|key| (key.to_string(), fate(key))).collect();
    let encoder = checkpoint.renamed(|key| match fate(key) {
        Fate::Encoder(name) => Some(name),
        _ => None,
    })?;
    let head = checkpoint.renamed(|key| match fate(key) {
        Fate::Head(name) => Some(name),
        _ => None,
    })?;
    let segmenter = checkpoint.renamed(|key| match fate(key) {
        Fate::Segmenter(name) => Some(name),
        _ => None,
    })?;
    Ok(Sorted { encoder, head, segmenter, fates })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_key_layout_is_understood() {
        let encoder = |s: &str| Fate::Encoder(s.into());
        let head = |s: &str| Fate::Head(s.into());
        for (layout, key, fate) in [
            (Layout::Torchvision, "module.layer1.0.conv1.weight", encoder("layer1.0.conv1.weight")),
            (Layout::Torchvision, "fc.bias", Fate::Drop("the classifier of the pretraining")),
            (
                Layout::Balnmp,
                "image_feature_extractor.extractor.0.41.running_mean",
                encoder("features.41.running_mean"),
            ),
            (Layout::Balnmp, "image_feature_extractor.0.0.weight", encoder("features.0.weight")),
            (
                Layout::Balnmp,
                "attention_aggregator.attention.2.bias",
                head("attention_aggregator.attention.2.bias"),
            ),
            (Layout::Balnmp, "image_feature_extractor.extractor.0.weight", encoder("conv1.weight")),
            (Layout::Balnmp, "image_feature_extractor.extractor.1.bias", encoder("bn1.bias")),
            (
                Layout::Balnmp,
                "image_feature_extractor.extractor.7.2.bn3.bias",
                encoder("layer4.2.bn3.bias"),
            ),
            (
                Layout::Balnmp,
                "image_feature_extractor.extractor.0.denseblock1.denselayer1.norm.1.bias",
                encoder("features.denseblock1.denselayer1.norm1.bias"),
            ),
            (
                Layout::Balnmp,
                "image_feature_extractor.extractor.Mixed_5b.branch1x1.bn.bias",
                encoder("Mixed_5b.branch1x1.bn.bias"),
            ),
            (
                Layout::Balnmp,
                "image_feature_extractor.extractor.inception3a.branch1.conv.weight",
                encoder("inception3a.branch1.conv.weight"),
            ),
            (Layout::Balnmp, "image_feature_extractor.extractor.fc.bias", Fate::Drop(CLASSIFIER)),
            (Layout::Balnmp, "image_feature_extractor.extractor.8.0.weight", Fate::Unknown),
            (Layout::Clam, "fc.0.weight", head("fc.0.weight")),
            (Layout::HistcodeEncoder, "module.encoder_q.bn1.bias", encoder("bn1.bias")),
            (Layout::HistcodeEncoder, "encoder_q.fc.2.bias", Fate::Drop("the projection head")),
            (Layout::HistcodeEncoder, "encoder_k.bn1.bias", Fate::Drop("the momentum encoder")),
            (Layout::HistcodeEncoder, "bn1.bias", Fate::Unknown),
            (
                Layout::Clam,
                "attention_net.module.3.attention_a.0.weight",
                head("attention_net.3.attention_a.0.weight"),
            ),
            (Layout::Clam, "module.classifiers.0.bias", head("classifiers.0.bias")),
            (
                Layout::Clam,
                "instance_classifiers.1.weight",
                Fate::Drop("instance clustering, for training only"),
            ),
            (Layout::Clam, "fc.weight", Fate::Unknown),
            (Layout::Abmil, "attention_V.0.weight", head("attention_V.0.weight")),
            (Layout::Abmil, "feature_extractor_part1.0.weight", Fate::Drop("the encoder")),
            (Layout::LastLayer, "fc.bias", head("fc.bias")),
            (
                Layout::LastLayer,
                "Mixed_7c.branch1x1.bn.bias",
                Fate::Drop("the encoder, which is imported by its own family"),
            ),
            (
                Layout::Torchvision,
                "features.denseblock1.denselayer2.norm.1.running_var",
                encoder("features.denseblock1.denselayer2.norm1.running_var"),
            ),
            (
                Layout::Torchvision,
                "AuxLogits.conv0.conv.weight",
                Fate::Drop("a classifier for training only"),
            ),
            (
                Layout::KerasInception,
                "batch_normalization_5.bias",
                encoder("Mixed_5b.branch1x1.bn.bias"),
            ),
            (Layout::KerasInception, "conv2d_94.weight", Fate::Unknown),
            (
                Layout::Segmenter,
                "module.decoder.0.project.1.bias",
                Fate::Segmenter("decoder.aspp.project.1.bias".into()),
            ),
            (
                Layout::Segmenter,
                "encoder.features.denseblock3.denselayer24.conv.2.weight",
                Fate::Segmenter("encoder.features.denseblock3.denselayer24.conv2.weight".into()),
            ),
            (
                Layout::Segmenter,
                "aux_classifier.4.bias",
                Fate::Drop("a classifier beside the segmentation"),
            ),
            (Layout::Vit, "blocks.3.attn.qkv.bias", encoder("blocks.3.attn.qkv.bias")),
            (Layout::Vit, "blocks.2.17.mlp.w12.weight", encoder("blocks.17.mlp.fc1.weight")),
            (Layout::Vit, "register_tokens", encoder("reg_token")),
            (
                Layout::Vit,
                "encoder.layer.11.attention.attention.value.bias",
                encoder("blocks.11.attn.v.bias"),
            ),
            (Layout::Vit, "encoder.layer.0.output.dense.bias", encoder("blocks.0.mlp.fc2.bias")),
            (Layout::Vit, "layers.0.mlp.up_proj.weight", encoder("blocks.0.mlp.value.weight")),
            (Layout::Vit, "embeddings.position_embeddings", encoder("pos_embed")),
            (Layout::Vit, "embeddings.mask_token", Fate::Drop("a token of the pretraining")),
            (Layout::Vit, "visual.trunk.pos_embed", encoder("pos_embed")),
            (Layout::Vit, "visual.ln_contrast.bias", encoder("attn_pool.ln_out.bias")),
            (Layout::Vit, "visual.attn_pool_contrast.query", encoder("attn_pool.query")),
            (Layout::Vit, "text.cls_emb", Fate::Drop("the text tower")),
            (Layout::Vit, "decoder.weight", Fate::Unknown),
        ] {
            assert_eq!(layout.fate(key), fate, "{key}");
        }
    }
}

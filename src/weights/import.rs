//! What the tensors of known checkpoints are called, and what they are called in a package.
//!
//! A layout is one function from a state-dict key to its [`Fate`]. It decides by name alone; that
//! every tensor has its place and its shape is checked by building the model afterwards.

use super::Tensors;
use crate::error::Result;

/// What becomes of one tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes into the encoder under this name.
    Encoder(String),
    /// It goes into the head under this name.
    Head(String),
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
}

impl Layout {
    /// The layout that a `--family` of the import names; a torchvision family for the rest.
    pub fn of_family(family: &str) -> Layout {
        match family {
            "balnmp" => Layout::Balnmp,
            "histcode-encoder" => Layout::HistcodeEncoder,
            "clam-sb" | "clam-mb" => Layout::Clam,
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
        }
    }
}

fn torchvision(key: &str) -> Fate {
    if key.starts_with("classifier.") || key.starts_with("fc.") {
        return Fate::Drop("the classifier of the pretraining");
    }
    Fate::Encoder(key.into())
}

fn balnmp(key: &str) -> Fate {
    let backbone = ["image_feature_extractor.extractor.0.", "image_feature_extractor.0."];
    if let Some(rest) = backbone.iter().find_map(|prefix| key.strip_prefix(prefix)) {
        return Fate::Encoder(format!("features.{rest}"));
    }
    if key.starts_with("attention_aggregator.") || key.starts_with("classifier.") {
        return Fate::Head(key.into());
    }
    Fate::Unknown
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
        _ => Fate::Unknown,
    }
}

/// A checkpoint sorted by a layout.
#[derive(Debug)]
pub struct Sorted {
    /// Tensors of the encoder under their package names.
    pub encoder: Tensors,
    /// Tensors of the head under their package names.
    pub head: Tensors,
    /// Every tensor of the checkpoint and what became of it.
    pub fates: Vec<(String, Fate)>,
}

/// Sorts the tensors of a checkpoint.
///
/// # Errors
/// [`crate::Kind::Weights`] when two tensors would get the same name.
pub fn sort(checkpoint: &Tensors, layout: Layout) -> Result<Sorted> {
    let fates = checkpoint.names().map(|key| (key.to_string(), layout.fate(key))).collect();
    let encoder = checkpoint.renamed(|key| match layout.fate(key) {
        Fate::Encoder(name) => Some(name),
        _ => None,
    })?;
    let head = checkpoint.renamed(|key| match layout.fate(key) {
        Fate::Head(name) => Some(name),
        _ => None,
    })?;
    Ok(Sorted { encoder, head, fates })
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
        ] {
            assert_eq!(layout.fate(key), fate, "{key}");
        }
    }
}

//! What is said of a bag of tiles: heads, their transforms and clinical inputs.

use serde::{Deserialize, Serialize};

/// From features to one prediction.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Name in results: `metastasis`, a gene.
    pub name: String,
    /// A row of `heads::FAMILIES`: `balnmp`, `clam-sb`, `clam-mb`, `tile-linear`.
    pub family: String,
    /// Weights file in the package folder.
    #[serde(default = "head_file")]
    pub weights: String,
    /// Class names in the order of the logits; empty for a regression.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// What is done to the output of a regression.
    #[serde(default)]
    pub transform: Transform,
    /// How tiles become one prediction in a head without attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Aggregate>,
    /// Clinical inputs in network order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clinical: Vec<Clinical>,
}

/// How the numbers of tiles become one number of the slide.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// The arithmetic mean.
    Mean,
    /// The largest.
    Max,
    /// The value at this fraction of the sorted tiles, interpolated as pandas does; Ekholm et al.
    /// 2024 take 0.75.
    Percentile(f32),
}

fn head_file() -> String {
    "head.safetensors".into()
}

/// What is done to the output of a regression.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// `10^y - 1`, HistCode's de-logged expression.
    Pow10MinusOne,
    /// `1 / (1 + exp(-y))`.
    Sigmoid,
}

/// One clinical input: a number to standardise, or a flag.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Clinical {
    /// `(value - mean) / sd`.
    Number {
        /// Column of the clinical table.
        column: String,
        /// Of the training patients.
        mean: f64,
        /// Of the training patients, population (ddof 0).
        sd: f64,
    },
    /// 1 when the cell equals `equals`, 0 when it is one of `otherwise`, an error for anything else.
    Flag {
        /// Column of the clinical table.
        column: String,
        /// The value that means 1.
        equals: String,
        /// The values that mean 0.
        otherwise: Vec<String>,
    },
}

//! Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of networks that end in global average pooling
//! and one linear layer.
//!
//! Of such a network the logit of class `k` is `b_k + sum_c W_kc mean_ij A_cij`, A being the last
//! map: its gradient is `W_kc / (H W)` everywhere, exactly. No backward pass is needed.

use crate::backend::{Backend, Input};
use crate::error::{Context, Error, Result};
use crate::heads;
use crate::image::Map;
use crate::models;
use crate::recipe::Recipe;
use crate::weights::Package;

/// A class activation map.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The layer whose output was weighted.
    pub layer: &'static str,
    /// The weighted sum of its channels before the ReLU: what is negative speaks against the class.
    pub signed: Map,
    /// Logit of the class as the map gives it: `b + sum over positions of signed`.
    pub logit: f64,
}

impl Activation {
    /// What speaks for the class: negative values become 0.
    pub fn positive(&self) -> Map {
        let data = self.signed.data.iter().map(|&v| v.max(0.0)).collect();
        Map { data, ..self.signed.clone() }
    }

    /// [`Activation::positive`] from 0 to 1: less the smallest, over the largest of that. All 0 when
    /// nothing speaks for the class.
    pub fn normalised(&self) -> Map {
        let map = self.positive();
        let low = map.data.iter().copied().fold(f32::INFINITY, f32::min);
        let high = map.data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = high - low;
        let share = |v: f32| if range > 0.0 { (v - low) / range } else { 0.0 };
        Map { data: map.data.iter().map(|&v| share(v)).collect(), ..map }
    }
}

/// The map of class `class` of the head `head` (both by number) for one encoder input `[H, W, 3]`.
///
/// # Errors
/// [`crate::Kind::Unsupported`] for an encoder that does not end in global average pooling or a head
/// that is not one linear layer; [`crate::Kind::Usage`] for a head or class there is not.
pub fn activation(
    package: &Package,
    backend: &dyn Backend,
    [head, class]: [usize; 2],
    pixels: &[u8],
) -> Result<Activation> {
    let recipe: &Recipe = &package.recipe;
    let weights = package.encoder()?;
    let encoder = models::build(recipe, &weights)
        .and_then(|encoder| models::last_map(&encoder, recipe))
        .context(|| weights.path().display().to_string())?;
    let spec = recipe.heads.get(head);
    let spec = spec.ok_or_else(|| Error::usage(format!("no head number {head}")))?;
    let linear = heads::linear_layer(spec, &package.head(spec)?)?;
    let [h, w, c] = encoder.shape;
    let row = linear.weight.chunks_exact(linear.features).nth(class);
    let (Some(row), true) = (row, linear.features == c) else {
        let (n, outputs) = (linear.features, linear.bias.len());
        return Err(Error::usage(format!(
            "class {class} of a layer from {n} features to {outputs}, the encoder makes {c}"
        )));
    };
    let mut map = vec![0.0f32; h * w * c];
    let mut session = backend.prepare(encoder.graph.clone(), 1)?;
    session.run(1, &[Input::Pixels(pixels)], &mut [&mut map])?;
    let positions = (h * w) as f64;
    let weighted: Vec<f64> = map
        .chunks_exact(c)
        .map(|channels| {
            let products = channels.iter().zip(row).map(|(&a, &w)| f64::from(a) * f64::from(w));
            products.sum::<f64>() / positions
        })
        .collect();
    let bias = linear.bias.get(class).copied().unwrap_or_default();
    Ok(Activation {
        layer: encoder.layer,
        logit: f64::from(bias) + weighted.iter().sum::<f64>(),
        signed: Map { width: w, height: h, data: weighted.iter().map(|&v| v as f32).collect() },
    })
}

//! What a head's outputs mean: probabilities, values and attention, computed in f64.

use super::Head;
use crate::error::{Error, Result};
use crate::recipe::Transform;

/// One prediction for one bag or slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// As the network made them.
    pub logits: Vec<f32>,
    /// Softmax of the logits, in class order; empty for a regression.
    pub probabilities: Vec<f64>,
    /// The transformed output of a regression.
    pub value: Option<f64>,
}

/// Interprets the logits of a head.
///
/// # Errors
/// [`crate::Kind::Weights`] when there is not one logit per output or one is not finite, which a
/// result must not hide behind a probability.
pub fn predict(head: &Head, logits: &[f32]) -> Result<Prediction> {
    if logits.len() != head.outputs || logits.iter().any(|x| !x.is_finite()) {
        return Err(Error::weights(format!(
            "head {}: logits {logits:?}, needed {} finite numbers",
            head.name, head.outputs
        )));
    }
    let wide = logits.iter().map(|&x| f64::from(x));
    let (probabilities, value) = if head.classes.is_empty() {
        (Vec::new(), logits.first().map(|&y| transform(head.transform, y.into())))
    } else {
        (softmax(wide), None)
    };
    Ok(Prediction { logits: logits.to_vec(), probabilities, value })
}

fn transform(transform: Transform, y: f64) -> f64 {
    match transform {
        Transform::None => y,
        Transform::Pow10MinusOne => 10f64.powf(y) - 1.0,
        Transform::Sigmoid => 1.0 / (1.0 + (-y).exp()),
    }
}

/// Predictions of single tiles, `[N, outputs]`, as a person reads them: probabilities of the classes,
/// or the transformed value of a regression.
///
/// # Errors
/// As [`predict`].
pub fn tile_values(head: &Head, logits: &[f32]) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(logits.len());
    for row in logits.chunks_exact(head.outputs.max(1)) {
        let prediction = predict(head, row)?;
        values.extend(prediction.probabilities.iter().chain(&prediction.value).map(|&v| v as f32));
    }
    Ok(values)
}

/// Attention weights from raw scores `[N, branches]`: each column's softmax over the N rows.
pub fn attention(scores: &[f32], branches: usize) -> Vec<f32> {
    let mut weights = vec![0.0; scores.len()];
    for branch in 0..branches {
        let column = scores.iter().skip(branch).step_by(branches).map(|&x| f64::from(x));
        for (row, weight) in softmax(column).into_iter().enumerate() {
            weights[row * branches + branch] = weight as f32;
        }
    }
    weights
}

fn softmax(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = values.map(|x| (x - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_survives_large_logits() {
        let p = softmax([1000.0, 1001.0].into_iter());
        assert!((p[1] - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-15);
    }

    #[test]
    fn attention_is_normalised_per_branch() {
        let a = attention(&[0.0, 5.0, 3f32.ln(), 5.0], 2);
        for (got, want) in a.iter().zip([0.25, 0.5, 0.75, 0.5]) {
            assert!((got - want).abs() < 1e-6, "{a:?}");
        }
    }

    #[test]
    fn expression_is_delogged() {
        assert!((transform(Transform::Pow10MinusOne, 2f64.log10()) - 1.0).abs() < 1e-15);
        assert_eq!(transform(Transform::Sigmoid, 0.0), 0.5);
    }
}

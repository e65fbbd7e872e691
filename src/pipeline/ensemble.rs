//! Several packages asked the same question: in what they must agree, and the mean of their answers.

use super::predict::HeadResult;
use crate::error::{Error, Result};
use crate::heads::{Prediction, Scores};
use crate::recipe::Recipe;
use crate::weights::Package;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

/// Checks that all packages look at the same tiles in the same way and have the same heads.
///
/// # Errors
/// [`crate::Kind::Usage`] naming two packages and the field in which their recipes differ,
/// [`crate::Kind::Unsupported`] for packages that look at pictures.
pub fn agree(packages: &[Package]) -> Result<()> {
    let Some((first, others)) = packages.split_first() else { return Ok(()) };
    if !others.is_empty() && first.recipe.image.is_some() {
        let what = "a package for pictures is no member of an ensemble: give one --package";
        return Err(Error::unsupported(what).context(first.dir.display().to_string()));
    }
    let wanted = common(&first.recipe)?;
    for other in others {
        if let Some((field, [ours, theirs])) = difference(&wanted, &common(&other.recipe)?) {
            return Err(Error::usage(format!(
                "{} and {} differ in {field} ({ours}, {theirs}): packages of an ensemble look at \
                 the same tiles and have the same heads",
                first.dir.display(),
                other.dir.display()
            )));
        }
    }
    Ok(())
}

/// The package whose gate is that of the ensemble, if any has one.
///
/// # Errors
/// [`crate::Kind::Usage`] when two have different gates.
pub fn gated(packages: &[Package]) -> Result<Option<&Package>> {
    let mut with = packages.iter().filter(|p| p.recipe.gate.is_some());
    let Some(first) = with.next() else { return Ok(None) };
    for other in with {
        if other.gate_id != first.gate_id {
            return Err(Error::usage(format!(
                "{} and {} differ in gate: an ensemble has one, in one of its packages or the \
                 same in several",
                first.dir.display(),
                other.dir.display()
            )));
        }
    }
    Ok(Some(first))
}

/// The identity of several packages in their order: SHA-256 of their ids.
pub fn id<'p>(packages: impl Iterator<Item = &'p Package>) -> String {
    let ids: Vec<&str> = packages.map(|p| p.recipe_id.as_str()).collect();
    format!("{:x}", Sha256::digest(ids.join("\n")))
}

/// What members of an ensemble must have in common. How pixels are normalised and what the networks
/// are is their own.
fn common(recipe: &Recipe) -> Result<Value> {
    let failed = |e: toml::ser::Error| Error::malformed(format!("recipe {}: {e}", recipe.name));
    let whole = Table::try_from(recipe).map_err(failed)?;
    let mut common = Table::new();
    for key in ["tissue", "tiles", "stain", "bag"] {
        common.extend(whole.get(key).map(|section| (key.to_string(), section.clone())));
    }
    let mut keep = |section: &str, keys: &[&str]| {
        let of = whole.get(section).and_then(Value::as_table);
        let mut kept = Table::new();
        for key in keys {
            let value = of.and_then(|table| table.get(*key));
            kept.extend(value.map(|value| (key.to_string(), value.clone())));
        }
        common.insert(section.into(), Value::Table(kept));
    };
    keep("preprocess", &["resize", "interpolation", "crop"]);
    keep("encoder", &["bn_mode"]);
    let mut heads = Table::new();
    for head in &recipe.heads {
        let mut kept = Table::new();
        kept.insert("classes".into(), Value::from(head.classes.clone()));
        kept.insert("transform".into(), Value::try_from(head.transform).map_err(failed)?);
        heads.insert(head.name.clone(), Value::Table(kept));
    }
    common.insert("head".into(), Value::Table(heads));
    // Tables forget the order of heads, which must be the same too.
    let order: Vec<String> = recipe.heads.iter().map(|h| h.name.clone()).collect();
    common.insert("order of heads".into(), Value::from(order));
    Ok(Value::Table(common))
}

/// The first place in which two values differ, and both.
fn difference(a: &Value, b: &Value) -> Option<(String, [String; 2])> {
    if let (Value::Table(a), Value::Table(b)) = (a, b) {
        let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        return keys.into_iter().find_map(|key| match (a.get(key), b.get(key)) {
            (Some(a), Some(b)) => difference(a, b).map(|(below, both)| {
                (if below.is_empty() { key.clone() } else { format!("{key}.{below}") }, both)
            }),
            (a, b) => Some((key.clone(), [a, b].map(shown))),
        });
    }
    (a != b).then(|| (String::new(), [shown(Some(a)), shown(Some(b))]))
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "absent".into(),
        Some(Value::Table(_)) => "present".into(),
        Some(other) => other.to_string(),
    }
}

/// Mean, sample standard deviation (n - 1 below the sum; 0 of one number), smallest and largest.
/// The sums run in ascending order, so that the order of the members changes no bit.
pub fn spread(values: impl Iterator<Item = f64>) -> [f64; 4] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let sd = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
    let [low, high] = [values.first(), values.last()].map(|v| v.copied().unwrap_or(f64::NAN));
    // A mean of equal numbers can miss them by a bit.
    [mean.max(low).min(high), sd, low, high]
}

/// The mean over members of what each of their heads said; one member speaks for itself. Scores of
/// tiles are means of predictions; attention is the mean of the weights, and its raw score their
/// logarithm, whose softmax is that mean.
pub fn combine(members: Vec<Vec<HeadResult>>) -> Vec<HeadResult> {
    let mut members = members.into_iter();
    let Some(first) = members.next() else { return Vec::new() };
    let others: Vec<Vec<HeadResult>> = members.collect();
    if others.is_empty() {
        return first;
    }
    let of_head = |(i, head): (usize, HeadResult)| {
        let mut all = vec![head];
        all.extend(others.iter().filter_map(|heads| heads.get(i).cloned()));
        mean_of(&all)
    };
    first.into_iter().enumerate().map(of_head).collect()
}

fn mean_of(members: &[HeadResult]) -> HeadResult {
    let first = &members[0];
    let mean = |at: &dyn Fn(&HeadResult) -> f64| spread(members.iter().map(at))[0];
    let column = |n: usize, at: &dyn Fn(&HeadResult, usize) -> f64| -> Vec<f64> {
        (0..n).map(|i| mean(&|m| at(m, i))).collect()
    };
    let narrow = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|v| v as f32).collect() };
    let bag = |b: usize| Prediction {
        logits: narrow(column(first.logits.len(), &|m, i| f64::from(m.bags[b].logits[i]))),
        probabilities: column(first.probabilities.len(), &|m, i| m.bags[b].probabilities[i]),
        value: first.value.map(|_| mean(&|m| m.bags[b].value.unwrap_or(f64::NAN))),
    };
    let attention = column(first.attention.len(), &|m, i| f64::from(m.attention[i]));
    let scores = match first.kind {
        Scores::Prediction => column(first.scores.len(), &|m, i| f64::from(m.scores[i])),
        // A weight that is none in every member stays the smallest.
        Scores::Attention => {
            let least = f64::from(f32::MIN_POSITIVE);
            attention.iter().map(|&w| if w < least { least.ln() } else { w.ln() }).collect()
        }
    };
    HeadResult {
        logits: narrow(column(first.logits.len(), &|m, i| f64::from(m.logits[i]))),
        probabilities: column(first.probabilities.len(), &|m, i| m.probabilities[i]),
        value: first.value.map(|_| mean(&|m| m.value.unwrap_or(f64::NAN))),
        bags: (0..first.bags.len()).map(bag).collect(),
        scores: narrow(scores),
        attention: narrow(attention),
        members: members
            .iter()
            .map(|m| Prediction {
                logits: m.logits.clone(),
                probabilities: m.probabilities.clone(),
                value: m.value,
            })
            .collect(),
        head: first.head.clone(),
        classes: first.classes.clone(),
        kind: first.kind,
        branches: first.branches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_that_differs_is_named() {
        let value = |text: &str| Value::Table(text.parse::<Table>().unwrap());
        let a = value("[tiles]\nsize_px = 598\nmpp = 0.5\n[stain]\nmethod = \"none\"");
        let differs = |text: &str| difference(&a, &value(text)).unwrap();
        let (field, both) =
            differs("[tiles]\nsize_px = 512\nmpp = 0.5\n[stain]\nmethod = \"none\"");
        assert_eq!((field.as_str(), both), ("tiles.size_px", ["598".into(), "512".into()]));
        let (field, both) = differs("[tiles]\nsize_px = 598\nmpp = 0.5");
        assert_eq!((field.as_str(), both), ("stain", ["present".into(), "absent".into()]));
        assert!(difference(&a, &a).is_none());
    }

    /// `statistics.mean`, `statistics.stdev` of Python.
    #[test]
    fn spread_is_that_of_a_sample() {
        let [mean, sd, low, high] = spread([2.0, 4.5, -1.0, 7.25].into_iter());
        assert!((mean - 3.1875).abs() < 1e-15 && (sd - 3.520_031_960_082_180_8).abs() < 1e-14);
        assert_eq!([low, high], [-1.0, 7.25]);
        assert_eq!(spread([3.0].into_iter()), [3.0, 0.0, 3.0, 3.0]);
        let order = [0.1, 0.7, 0.3, 1e-9];
        let reversed = order.iter().rev().copied();
        assert_eq!(spread(order.into_iter()), spread(reversed));
    }
}

//! What `result.json` says of a slide: where it comes from, what became of its tiles, what was said.

use super::decode::{Tally, TileState};
use super::predict::HeadResult;
use super::{Engine, Finished, Prepared, ensemble};
use crate::recipe::Bag;
use crate::report::result;
use crate::slide::Slide;
use std::collections::BTreeMap;

/// The result of a slide before anything was predicted: what is enough to tell whether a run would
/// repeat an earlier one.
pub fn blank_result(
    engine: &Engine,
    recipe_id: &str,
    file_name: &str,
    sha256: &str,
    options: BTreeMap<String, serde_json::Value>,
) -> result::SlideResult {
    let recipe = engine.recipe();
    result::SlideResult {
        schema: result::SCHEMA,
        program: result::Program::this(),
        slide: result::Slide {
            name: file_name.into(),
            sha256: sha256.into(),
            format: String::new(),
            width: 0,
            height: 0,
            mpp: None,
            objective_power: None,
        },
        package: result::Package {
            name: recipe.name.clone(),
            recipe_id: recipe_id.into(),
            notice: recipe.notice.clone(),
            members: members(engine),
        },
        device: result::Device {
            kind: engine.device().split(' ').next().unwrap_or_default().into(),
            name: engine.device().into(),
        },
        precision: engine.precision().to_string(),
        options,
        tiles: result::Tiles {
            size_level0: None,
            grid: 0,
            kept: 0,
            dropped: BTreeMap::new(),
            unread: Vec::new(),
        },
        regions: String::new(),
        gate: None,
        stain: None,
        segmentation: None,
        clinical: BTreeMap::new(),
        predictions: Vec::new(),
        warnings: Vec::new(),
        seconds: result::Seconds::default(),
    }
}

/// The packages of an ensemble; none for a single package.
fn members(engine: &Engine) -> Vec<result::Member> {
    let packages = engine.packages();
    match packages.len() {
        1 => Vec::new(),
        _ => packages
            .map(|p| result::Member { name: p.recipe.name.clone(), recipe_id: p.recipe_id.clone() })
            .collect(),
    }
}

/// Adds what is known of an encoded slide.
pub fn describe(result: &mut result::SlideResult, slide: &Finished) {
    let prepared = &slide.prepared;
    describe_slide(&mut result.slide, &prepared.slide);
    result.regions.clone_from(&prepared.area);
    result.stain = prepared.stain.as_deref().and_then(|s| serde_json::to_value(s).ok());
    result.warnings.clone_from(&prepared.warnings);
    result.tiles = tiles(prepared, &slide.tally, slide.tiles.len());
    result.gate = slide.verdict.as_ref().map(|verdict| {
        let said = verdict.tiles.iter().map(|(_, p)| *p);
        result::Gate {
            class: verdict.class.clone(),
            threshold: verdict.threshold,
            classifiers: verdict.classifiers as u64,
            looked_at: verdict.tiles.len() as u64,
            passed: said.clone().filter(|&p| verdict.passes(p)).count() as u64,
            highest: said.reduce(f64::max),
        }
    });
    if slide.tally.on_missing > 0 {
        result.warnings.push(format!(
            "{} tiles touch areas for which the slide holds no data",
            slide.tally.on_missing
        ));
    }
    if !result.tiles.unread.is_empty() {
        let n = result.tiles.unread.len();
        result.warnings.push(format!("{n} tiles could not be read and were left out"));
    }
    let s = slide.seconds;
    result.seconds.hash = s.hash;
    result.seconds.prepare = s.prepare;
    result.seconds.decode = s.decode;
    result.seconds.encode = s.encode;
    result.seconds.total = s.hash + s.prepare + s.total;
}

fn describe_slide(out: &mut result::Slide, slide: &Slide) {
    out.format = slide.format().into();
    out.width = slide.levels()[0].width.into();
    out.height = slide.levels()[0].height.into();
    out.objective_power = slide.objective_power();
    out.mpp = slide.mpp().map(|m| result::Mpp { x: m.x, y: m.y, source: m.source.name().into() });
}

fn tiles(prepared: &Prepared, tally: &Tally, kept: usize) -> result::Tiles {
    let mut dropped = BTreeMap::new();
    let mut unread = Vec::new();
    for (state, &[x, y]) in tally.states.iter().zip(&prepared.grid.origins) {
        match state {
            TileState::White => *dropped.entry("white".into()).or_insert(0) += 1,
            TileState::Blurred => *dropped.entry("blurred".into()).or_insert(0) += 1,
            TileState::Gated => *dropped.entry("gated".into()).or_insert(0) += 1,
            TileState::Unread(reason) => {
                unread.push(result::UnreadTile { x, y, reason: reason.clone() });
            }
            TileState::Kept | TileState::Pending => {}
        }
    }
    let encodable = tally.count(|s| *s == TileState::Kept);
    if encodable > kept {
        dropped.insert("incomplete bag".into(), (encodable - kept) as u64);
    }
    if prepared.off_mask > 0 {
        dropped.insert("off the mask".into(), prepared.off_mask as u64);
    }
    result::Tiles {
        size_level0: Some(prepared.grid.size_level0),
        grid: (tally.states.len() + prepared.off_mask) as u64,
        kept: kept as u64,
        dropped,
        unread,
    }
}

/// Head results as `result.json` holds them.
pub fn predictions(heads: &[HeadResult], bags: &[Vec<usize>]) -> Vec<result::Prediction> {
    heads
        .iter()
        .map(|head| {
            let per_bag = head.bags.iter().zip(bags).map(|(p, bag)| result::BagPrediction {
                tiles: bag.len() as u64,
                logits: p.logits.clone(),
                outcome: outcome(&head.classes, &p.probabilities, p.value),
            });
            result::Prediction {
                head: head.head.clone(),
                logits: head.logits.clone(),
                outcome: outcome(&head.classes, &head.probabilities, head.value),
                bags: if bags.len() > 1 { per_bag.collect() } else { Vec::new() },
                ensemble: (!head.members.is_empty()).then(|| agreement(head)),
            }
        })
        .collect()
}

fn outcome(classes: &[String], probabilities: &[f64], value: Option<f64>) -> result::Outcome {
    match value {
        Some(value) => result::Outcome::Value { value },
        None => result::Outcome::Classes {
            classes: classes.to_vec(),
            probabilities: probabilities.to_vec(),
        },
    }
}

/// How far the packages of an ensemble agree on a head.
fn agreement(head: &HeadResult) -> result::Ensemble {
    let members: Vec<result::MemberPrediction> = head
        .members
        .iter()
        .map(|m| result::MemberPrediction {
            logits: m.logits.clone(),
            outcome: outcome(&head.classes, &m.probabilities, m.value),
        })
        .collect();
    let numbers = members.first().map_or(0, |m| m.outcome.numbers().len());
    let of = |i: usize| ensemble::spread(members.iter().map(|m| m.outcome.numbers()[i]));
    let spreads: Vec<[f64; 4]> = (0..numbers).map(of).collect();
    let column = |at: usize| spreads.iter().map(|s| s[at]).collect();
    result::Ensemble { sd: column(1), min: column(2), max: column(3), members }
}

/// Why a slide has no bag to predict from.
pub fn why_empty(result: &result::SlideResult, bag: Option<&Bag>) -> String {
    let tiles = &result.tiles;
    let kept = tiles.kept + tiles.dropped.get("incomplete bag").copied().unwrap_or(0);
    let mut why = match (tiles.grid, kept, bag) {
        (_, 0, _) if result.gate.as_ref().is_some_and(|g| g.looked_at > 0) => gate_shut(result),
        (grid, ..) if grid > 0 && tiles.dropped.get("off the mask") == Some(&grid) => {
            format!("none of {grid} tiles lies on the mask")
        }
        (0, _, _) => format!("no tile on {}", result.regions),
        (grid, 0, _) => {
            let dropped: u64 = tiles.dropped.values().sum();
            format!(
                "none of {grid} tiles was kept ({dropped} dropped, {} unreadable)",
                tiles.unread.len()
            )
        }
        (_, kept, Some(bag)) => format!("{kept} tiles, fewer than one bag of {}", bag.size),
        (grid, kept, None) => format!("{kept} of {grid} tiles"),
    };
    for warning in &result.warnings {
        why.push_str("; ");
        why.push_str(warning);
    }
    why
}

/// Why nothing passed the gate.
fn gate_shut(result: &result::SlideResult) -> String {
    result.gate.as_ref().map_or_else(String::new, |gate| {
        format!(
            "none of {} tiles passed the gate: the highest probability of {} is {:.3}, needed {}",
            gate.looked_at,
            gate.class,
            gate.highest.unwrap_or(f64::NAN),
            gate.threshold
        )
    })
}

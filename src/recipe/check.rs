//! What the types of a recipe cannot say: ranges, and keys that go together.

use super::{
    Aggregate, BnMode, Clinical, Encoder, Gate, Head, Jpeg2000, NO_ENCODER, Preprocess, Recipe,
    Segmenter, Stain, Tiles, Tissue, TokenPool,
};
use std::path::Path;

/// The key at fault and what is wrong with it.
pub(super) type Fault = (&'static str, String);

impl Recipe {
    /// Checks every section.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.schema != 1 {
            return Err(("schema", format!("schema {}: this program reads schema 1", self.schema)));
        }
        if self.name.is_empty()
            || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(("name", format!("name {:?}: letters, digits, - _ . only", self.name)));
        }
        self.check_input()?;
        self.preprocess.check()?;
        let side = match (self.preprocess.resize, &self.tiles) {
            (Some(side), _) => side,
            (None, Some(tiles)) => tiles.size_px,
            (None, None) if self.encoder.family == NO_ENCODER => 1,
            (None, None) => {
                let what = "[preprocess] resize is missing: pictures come in every size";
                return Err(("[preprocess]", what.into()));
            }
        };
        if !(1..=4096).contains(&side) {
            return Err(("resize", format!("encoder input of {side} px: 1 to 4096")));
        }
        if self.preprocess.crop.is_some_and(|c| c == 0 || c > side) {
            return Err(("crop", format!("crop must lie between 1 and {side}")));
        }
        self.encoder.check()?;
        if let Tissue::Clam(clam) = &self.tissue
            && (clam.median % 2 == 0 || clam.median > 255)
        {
            return Err(("median", format!("median {}: odd, at most 255", clam.median)));
        }
        self.stain.check()?;
        match &self.bag {
            Some(bag) if bag.size == 0 => return Err(("size", "bag size 0".into())),
            None if self.encoder.bn_mode == BnMode::Batch => {
                return Err(("bn_mode", "bn_mode = \"batch\" needs a [bag]".into()));
            }
            _ => {}
        }
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        for (i, segmenter) in self.segmenters.iter().enumerate() {
            segmenter.check()?;
            if self.segmenters[..i].iter().any(|s| s.name == segmenter.name) {
                return Err(("name", format!("segmenter {:?} is named twice", segmenter.name)));
            }
        }
        for (i, head) in self.heads.iter().enumerate() {
            head.check()?;
            if self.heads[..i].iter().any(|h| h.name == head.name) {
                return Err(("name", format!("head {:?} is named twice", head.name)));
            }
        }
        Ok(())
    }
}

impl Recipe {
    /// Slides or pictures, and the parts that go with each.
    fn check_input(&self) -> Result<(), Fault> {
        self.fusion.check()?;
        match (&self.tiles, &self.image) {
            (Some(_), Some(_)) => {
                Err(("[image]", "[tiles] is for slides, [image] for pictures: not both".into()))
            }
            (None, None) => Err((
                "schema",
                "no [tiles] (a package for slides) and no [image] (for pictures)".into(),
            )),
            (Some(tiles), None) => tiles.check(),
            (None, Some(_)) if !self.stain.is_none() => {
                Err(("[stain]", "[stain] is fitted on slides; a picture has none".into()))
            }
            (None, Some(_)) if self.bag.is_some() => {
                Err(("[bag]", "[bag] groups tiles of slides; a picture is one".into()))
            }
            (None, Some(image)) => image.check(),
        }
    }
}

/// A plain file name, so that a recipe reads nothing outside its folder.
fn weights(name: &str) -> Result<(), Fault> {
    let plain = Path::new(name).components().count() == 1 && !name.starts_with('.');
    if plain && name.ends_with(".safetensors") {
        return Ok(());
    }
    let what = format!("weights {name:?} must be a .safetensors file in the package folder");
    Err(("weights", what))
}

impl Tiles {
    fn check(&self) -> Result<(), Fault> {
        if !(1..=16_384).contains(&self.size_px) {
            return Err(("size_px", format!("size_px {}: 1 to 16384", self.size_px)));
        }
        if self.stride_px == Some(0) {
            return Err(("stride_px", "stride_px 0: tiles must advance".into()));
        }
        if self.mpp.is_some_and(|m| !(m.is_finite() && m > 0.0)) {
            return Err(("mpp", "mpp must be a positive number of micrometres".into()));
        }
        if self.jpeg2000 == Jpeg2000::Reduced && self.mpp.is_none() {
            let what = "jpeg2000 = \"reduced\" goes with mpp: without it tiles are level-0 pixels";
            return Err(("jpeg2000", what.into()));
        }
        Ok(())
    }
}

impl Encoder {
    fn check(&self) -> Result<(), Fault> {
        weights(&self.weights)?;
        let Some(vit) = &self.vit else { return Ok(()) };
        if !(vit.eps.is_finite() && vit.eps > 0.0) {
            return Err(("eps", format!("eps {}: a small positive number", vit.eps)));
        }
        if (vit.pool == TokenPool::Attention) != vit.pool_heads.is_some() {
            let what = "pool_heads goes with pool = \"attention\", and only with it";
            return Err(("pool", what.into()));
        }
        Ok(())
    }
}

impl Gate {
    fn check(&self) -> Result<(), Fault> {
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(("threshold", format!("gate: threshold {}: 0 to 1", self.threshold)));
        }
        if !self.classes.is_empty() && !self.classes.contains(&self.class) {
            let what =
                format!("gate: {:?} is not one of its classes {:?}", self.class, self.classes);
            return Err(("class", what));
        }
        if self.mean.is_some() != self.std.is_some() {
            return Err(("[gate]", "gate: mean and std go together".into()));
        }
        let bad_std = self.std.is_some_and(|std| std.iter().any(|&s| !(s.is_finite() && s > 0.0)));
        if bad_std || self.mean.is_some_and(|mean| mean.iter().any(|m| !m.is_finite())) {
            return Err(("[gate]", "gate: mean must be finite, std positive".into()));
        }
        if self.classifiers.is_empty() {
            return Err(("[gate]", "gate: no [[gate.classifier]]".into()));
        }
        for (i, classifier) in self.classifiers.iter().enumerate() {
            weights(&classifier.weights)?;
            if self.classifiers[..i].iter().any(|c| c.weights == classifier.weights) {
                let what = format!("gate: {:?} is named twice", classifier.weights);
                return Err(("weights", what));
            }
        }
        Ok(())
    }
}

impl Head {
    fn check(&self) -> Result<(), Fault> {
        weights(&self.weights)?;
        if let Some(Aggregate::Percentile(q)) = self.aggregate
            && !(0.0..=1.0).contains(&q)
        {
            return Err(("aggregate", format!("percentile {q}: a fraction from 0 to 1")));
        }
        for clinical in &self.clinical {
            if let Clinical::Number { column, sd, mean } = clinical
                && !(sd.is_finite() && *sd > 0.0 && mean.is_finite())
            {
                return Err(("clinical", format!("{column}: mean and sd must be finite, sd > 0")));
            }
        }
        Ok(())
    }
}

impl Preprocess {
    fn check(&self) -> Result<(), Fault> {
        if self.std.iter().any(|&s| !(s.is_finite() && s > 0.0)) {
            return Err(("std", "std must be positive".into()));
        }
        if self.mean.iter().any(|m| !m.is_finite()) {
            return Err(("mean", "mean must be finite".into()));
        }
        Ok(())
    }
}

impl Segmenter {
    fn check(&self) -> Result<(), Fault> {
        weights(&self.weights)?;
        self.preprocess.check()?;
        if self.preprocess.crop.is_some() {
            return Err(("crop", format!("segmenter {:?}: pictures are not cropped", self.name)));
        }
        if self.preprocess.resize.is_some_and(|side| !(1..=4096).contains(&side)) {
            return Err(("resize", format!("segmenter {:?}: resize 1 to 4096", self.name)));
        }
        let heads = &self.heads;
        let twice = (1..heads.len()).any(|i| heads[..i].contains(&heads[i]));
        if twice || heads.iter().any(|k| !(1..=4).contains(k)) {
            let what = format!("segmenter {:?}: heads from 1 to 4, each once", self.name);
            return Err(("heads", what));
        }
        Ok(())
    }
}

impl Stain {
    fn check(&self) -> Result<(), Fault> {
        let all =
            |values: &[f64], ok: fn(f64) -> bool| values.iter().all(|&v| v.is_finite() && ok(v));
        match self {
            Stain::None => {}
            Stain::Macenko(m) => {
                if !all(&[m.light], |v| (1.0..=256.0).contains(&v)) {
                    return Err(("light", format!("light {}: 1 to 256", m.light)));
                }
                if !all(&[m.alpha], |v| (0.0..50.0).contains(&v)) {
                    return Err(("alpha", format!("alpha {}: 0 to below 50 percent", m.alpha)));
                }
                if !all(&[m.beta], |v| v >= 0.0) {
                    return Err(("beta", "beta must be an optical density of at least 0".into()));
                }
                let colours = [m.target.haematoxylin, m.target.eosin];
                let black =
                    colours.iter().any(|c| !all(c, |_| true) || c.iter().sum::<f64>() <= 0.0);
                if black || !all(&m.target.max, |v| v > 0.0) {
                    return Err((
                        "target",
                        "target: stains must absorb light, max must be > 0".into(),
                    ));
                }
            }
            Stain::Reinhard(r) => {
                if !all(&r.target.mean, |_| true) || !all(&r.target.sd, |v| v > 0.0) {
                    return Err(("target", "target: mean and sd must be finite, sd > 0".into()));
                }
            }
        }
        Ok(())
    }
}

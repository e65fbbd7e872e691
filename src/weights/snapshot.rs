//! A local Hugging Face snapshot: the folder that `huggingface-cli download` makes of a model, in
//! timm's form (`architecture`, `pretrained_cfg`) or that of transformers (`model_type`,
//! `preprocessor_config.json`).

use crate::error::{Error, Result};
use crate::recipe::{Interpolation, PositionResize, Recipe, TokenPool, Vit};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Weights files in order of preference.
const WEIGHTS: [&str; 3] = ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth"];
/// timm's `IMAGENET_DEFAULT_MEAN` and `.._STD`, in force where a config is silent.
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

/// What the configuration of a snapshot says.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The weights file.
    pub weights: PathBuf,
    /// What the network is: timm's architecture or the class of transformers.
    pub architecture: String,
    /// As stated, or empty.
    pub licence: String,
    /// A recipe for tiles of the encoder's own input size at 0.5 um/px.
    pub recipe: Recipe,
}

impl Snapshot {
    /// Reads the configuration of a snapshot.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the folder is no snapshot, [`crate::Kind::Malformed`] for a
    /// configuration that cannot be read, [`crate::Kind::Unsupported`] when it is not of a vision
    /// transformer; all name the file.
    pub fn open(dir: &Path) -> Result<Snapshot> {
        let at = |name: &str| dir.join(name);
        let Some(weights) = WEIGHTS.iter().map(|name| at(name)).find(|p| p.is_file()) else {
            let index = at("model.safetensors.index.json");
            let why = if index.is_file() {
                "its weights are in several files; save them as one with save_pretrained(.., \
                 max_shard_size = \"100GB\")"
            } else {
                "no model.safetensors or pytorch_model.bin in this folder"
            };
            return Err(Error::usage(format!("{}: {why}", dir.display())));
        };
        let config = json(&at("config.json"))?;
        let preprocessor = at("preprocessor_config.json");
        let preprocessor = if preprocessor.is_file() { json(&preprocessor)? } else { Value::Null };
        let named = |e: Error| e.context(at("config.json").display().to_string());
        let (architecture, model) = match config["architecture"].as_str() {
            Some(name) => (name.to_string(), timm(name, &config).map_err(named)?),
            None => {
                let name = config["architectures"][0].as_str().or(config["model_type"].as_str());
                let name = name.unwrap_or_default().to_string();
                (name, transformers(&config, &preprocessor).map_err(named)?)
            }
        };
        let licence = [&config["pretrained_cfg"]["license"], &config["license"]];
        let licence = licence.iter().find_map(|v| v.as_str()).unwrap_or_default().to_string();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let recipe = model.recipe(&name, &architecture, &licence).map_err(named)?;
        Ok(Snapshot { weights, architecture, licence, recipe })
    }
}

fn json(path: &Path) -> Result<Value> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(name(), e))?;
    serde_json::from_str(&text).map_err(|e| Error::malformed(format!("{}: {e}", name())))
}

/// The parts of a configuration that decide features.
struct Model {
    vit: Vit,
    input_px: u32,
    resize_px: u32,
    interpolation: Interpolation,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Model {
    fn recipe(self, name: &str, architecture: &str, licence: &str) -> Result<Recipe> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let name: String = name.chars().map(plain).collect();
        let title = toml::Value::String(format!("Features of {architecture}"));
        let licence = if licence.is_empty() { "of the checkpoint" } else { licence };
        let crop = match self.resize_px == self.input_px {
            true => String::new(),
            false => format!("crop = {}\n", self.input_px),
        };
        let interpolation = match self.interpolation {
            Interpolation::Bilinear => "bilinear",
            Interpolation::Bicubic => "bicubic",
            Interpolation::Nearest => "nearest",
        };
        let vit = toml::to_string(&self.vit).map_err(|e| Error::malformed(e.to_string()))?;
        Recipe::parse(&format!(
            "schema = 1\nname = \"{}\"\ntitle = {title}\nlicence = {}\nsource = \"a local snapshot\"\n\
             [tiles]\nsize_px = {}\nmpp = 0.5\n\
             [preprocess]\ninterpolation = \"{interpolation}\"\n{crop}mean = {:?}\nstd = {:?}\n\
             [encoder]\nfamily = \"vit\"\n[encoder.vit]\n{vit}",
            if name.is_empty() { "encoder" } else { &name },
            toml::Value::String(licence.into()),
            self.resize_px,
            self.mean,
            self.std,
        ))
    }
}

fn timm(architecture: &str, config: &Value) -> Result<Model> {
    let (arguments, pretrained) = (&config["model_args"], &config["pretrained_cfg"]);
    // The older form has everything at the root.
    let own = |key: &str| [&pretrained[key], &config[key]].into_iter().find(|v| !v.is_null());
    let heads = whole(&arguments["num_heads"]).or_else(|| timm_heads(architecture));
    let Some(heads) = heads else {
        return Err(Error::unsupported(format!(
            "{architecture}: not a vision transformer this program knows the number of heads of"
        )));
    };
    let side = own("input_size").and_then(|v| whole(&v[1])).unwrap_or(224);
    let given = &arguments["img_size"];
    let side = whole(given).or_else(|| whole(&given[0])).unwrap_or(side);
    known_activation(&arguments["act_layer"])?;
    let pool = match arguments["global_pool"].as_str().or(config["global_pool"].as_str()) {
        Some("avg") => TokenPool::Mean,
        Some("token") | Some("") | None => TokenPool::Class,
        Some(other) => {
            return Err(Error::unsupported(format!("global_pool {other:?}: token or avg")));
        }
    };
    let interpolation = match own("interpolation").and_then(Value::as_str) {
        Some("bilinear") => Interpolation::Bilinear,
        Some("bicubic") | None => Interpolation::Bicubic,
        Some(other) => return Err(Error::unsupported(format!("interpolation {other:?}"))),
    };
    let fraction = own("crop_pct").and_then(Value::as_f64).unwrap_or(0.875);
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::malformed(format!("crop_pct {fraction}: between 0 and 1")));
    }
    let statistics = |key: &str, silent: [f32; 3]| own(key).map_or(Ok(silent), triple);
    Ok(Model {
        vit: Vit { heads, pool, pool_heads: None, eps: 1e-6, position: PositionResize::Antialias },
        input_px: pixels(side)?,
        resize_px: pixels((side as f64 / fraction).floor() as usize)?,
        interpolation,
        mean: statistics("mean", IMAGENET[0])?,
        std: statistics("std", IMAGENET[1])?,
    })
}

/// Heads of timm's vision transformers, which a configuration does not repeat.
fn timm_heads(architecture: &str) -> Option<usize> {
    const HEADS: [(&str, usize); 9] = [
        ("vit_tiny_", 3),
        ("vit_small_", 6),
        ("vit_base_", 12),
        ("vit_large_", 16),
        ("vit_huge_", 16),
        ("vit_giant_patch14_dinov2", 24),
        ("vit_giant_patch14_reg4_dinov2", 24),
        ("vit_giant_", 16),
        ("vit_so400m_", 16),
    ];
    HEADS.iter().find(|(prefix, _)| architecture.starts_with(prefix)).map(|(_, heads)| *heads)
}

fn transformers(config: &Value, preprocessor: &Value) -> Result<Model> {
    let Some(heads) = whole(&config["num_attention_heads"]) else {
        return Err(Error::unsupported("neither timm's nor a vision transformer of transformers"));
    };
    known_activation(&config["hidden_act"])?;
    let side = |v: &Value| ["height", "shortest_edge"].iter().find_map(|k| whole(&v[*k]));
    let resized = side(&preprocessor["size"]).or_else(|| whole(&preprocessor["size"]));
    let cropped = match preprocessor["do_center_crop"].as_bool() {
        Some(true) => side(&preprocessor["crop_size"]).or(whole(&preprocessor["crop_size"])),
        _ => None,
    };
    let resize = resized.or(whole(&config["image_size"])).unwrap_or(224);
    // PIL's numbers of filters.
    let interpolation = match whole(&preprocessor["resample"]) {
        Some(2) => Interpolation::Bilinear,
        Some(3) | None => Interpolation::Bicubic,
        Some(other) => return Err(Error::unsupported(format!("resample = {other}: 2 or 3"))),
    };
    let statistics = |key: &str, silent: [f32; 3]| match &preprocessor[key] {
        Value::Null => Ok(silent),
        v => triple(v),
    };
    let position = match config["model_type"].as_str() {
        Some("dinov2_with_registers") => PositionResize::Antialias,
        _ => PositionResize::Bicubic,
    };
    let eps = config["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32;
    Ok(Model {
        vit: Vit { heads, pool: TokenPool::Class, pool_heads: None, eps, position },
        input_px: pixels(cropped.unwrap_or(resize))?,
        resize_px: pixels(resize)?,
        interpolation,
        mean: statistics("image_mean", IMAGENET[0])?,
        std: statistics("image_std", IMAGENET[1])?,
    })
}

/// The graph has GELU, or SiLU where the MLP is gated.
fn known_activation(name: &Value) -> Result<()> {
    match name.as_str() {
        None | Some("gelu" | "silu") => Ok(()),
        Some(other) => Err(Error::unsupported(format!("activation {other:?}: gelu, or silu"))),
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn pixels(side: usize) -> Result<u32> {
    let side = u32::try_from(side).ok().filter(|s| (1..=4096).contains(s));
    side.ok_or_else(|| Error::malformed("an input size that is not 1 to 4096 pixels"))
}

fn triple(value: &Value) -> Result<[f32; 3]> {
    let number = |i: usize| value[i].as_f64().map(|x| x as f32);
    match [number(0), number(1), number(2)] {
        [Some(r), Some(g), Some(b)] => Ok([r, g, b]),
        _ => Err(Error::malformed(format!("{value}: not three numbers"))),
    }
}

//! Packages readied on a backend: encoders, gate and heads, each one session. Several packages are
//! an ensemble: the same tiles go through every encoder, and their heads are asked one by one.

use super::decode::Slot;
use super::ensemble;
use super::features::{Features, Rows};
use super::gate::Gate;
use super::head::{BagPrediction, HeadSession};
use crate::backend::{self, Backend, Batch, HostMemory, Input, Kept, Precision, Session};
use crate::error::{Context, Error, Kind, Result};
use crate::heads::{self, Head};
use crate::models::{self, Encoder};
use crate::recipe::{BnMode, Recipe};
use crate::weights::Package;
use std::path::Path;
use std::sync::Arc;

/// Heads that keep the memory of their last bag; more give it back, so that hundreds of heads need
/// that of one.
const KEPT_ARENAS: usize = 8;

/// Packages ready to run.
pub struct Engine {
    members: Vec<Member>,
    /// Every different encoder of the members once, with its batches.
    encoders: Vec<(Encoder, Box<dyn Session>)>,
    gate: Option<Gate>,
    device: String,
    precision: Precision,
    batch: usize,
    /// Pixels of a tile that the encoder's session makes into its input by itself; 0 for none.
    tile_pixels: usize,
    notes: Vec<String>,
    /// Whether features stay on the device for the heads, and whether it was said that some do not.
    keeps: bool,
    told: bool,
    /// The batch given to an encoder that works on one batch at a time: it runs when collected.
    waiting: Option<(usize, HostMemory)>,
}

/// One package of an ensemble.
struct Member {
    package: Package,
    heads: Vec<HeadSession>,
    /// Its encoder among those of the engine.
    encoder: usize,
}

/// Which parts of a package are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Pixels to features.
    Encoder,
    /// Features to predictions.
    Heads,
    /// Both.
    All,
}

impl Engine {
    /// Opens the package in `folder` and readies its parts for batches of up to `batch` tiles, fewer
    /// if the device has no room for that many ([`Engine::notes`] then says so).
    ///
    /// # Errors
    /// Whatever keeps the recipe, the weights or the device from being used, naming the file.
    pub fn open(
        folder: &Path,
        backend: &dyn Backend,
        parts: Parts,
        batch: usize,
    ) -> Result<Engine> {
        Engine::open_all(&[folder], backend, parts, batch)
    }

    /// As [`Engine::open`] for an ensemble of at least one package. An encoder that several packages
    /// share runs once.
    ///
    /// # Errors
    /// As [`Engine::open`]; [`crate::Kind::Usage`] naming the field in which the recipes differ
    /// though they must not: what decides tiles and the encoder's input, and the heads.
    pub fn open_all(
        folders: &[&Path],
        backend: &dyn Backend,
        parts: Parts,
        batch: usize,
    ) -> Result<Engine> {
        let mut packages: Vec<Package> =
            folders.iter().map(|folder| Package::open(folder)).collect::<Result<_>>()?;
        let precision = backend.precision();
        if precision != Precision::F16 {
            // Other numbers make other features, which must not be taken for the usual ones.
            for package in &mut packages {
                for id in [&mut package.recipe_id, &mut package.encoder_id] {
                    *id = format!("{id}-{precision}");
                }
            }
        }
        let Some(first) = packages.first() else { return Err(Error::usage("no package")) };
        ensemble::agree(&packages)?;
        // Batch norm over the bag makes the bag the batch, and it is not to be cut.
        let whole = match &first.recipe.bag {
            Some(bag) if first.recipe.encoder.bn_mode == BnMode::Batch => Some(bag.size),
            _ => None,
        };
        let gated = ensemble::gated(&packages)?.cloned();
        let mut engine = Engine {
            members: Vec::with_capacity(packages.len()),
            encoders: Vec::new(),
            gate: None,
            device: backend.name(),
            precision,
            batch: whole.unwrap_or(batch.max(1)),
            tile_pixels: 0,
            notes: Vec::new(),
            keeps: parts == Parts::All && whole.is_none(),
            told: false,
            waiting: None,
        };
        for package in packages {
            let encoder = match parts {
                Parts::Heads => 0,
                Parts::Encoder | Parts::All => engine.ready(&package, backend, whole.is_some())?,
            };
            let mut member = Member { package, heads: Vec::new(), encoder };
            if parts != Parts::Encoder {
                let dim = engine.encoders.get(encoder).map(|(e, _)| e.feature_dim);
                member.heads = open_heads(&member.package, dim, backend)?;
            }
            engine.members.push(member);
        }
        if let Some(package) = gated.filter(|_| parts != Parts::Heads) {
            engine.gate = Gate::open(&package, backend, engine.batch, &mut engine.notes)?;
        }
        // A gate and the encoders of further members need the input as well, on the host.
        if let ([(_, session)], None, None) = (&mut engine.encoders[..], &engine.gate, whole) {
            engine.tile_pixels = accepted(&mut **session, &engine.members[0].package.recipe)?;
        }
        Ok(engine)
    }

    /// Readies the encoder of a package, unless an earlier member has the same.
    fn ready(&mut self, package: &Package, backend: &dyn Backend, whole: bool) -> Result<usize> {
        let same = |m: &Member| m.package.encoder_id == package.encoder_id;
        if let Some(earlier) = self.members.iter().find(|m| same(m)) {
            return Ok(earlier.encoder);
        }
        let weights = package.encoder()?;
        let encoder = models::build(&package.recipe, &weights)
            .context(|| weights.path().display().to_string())?;
        let graph = encoder.graph.clone();
        let session = if whole {
            backend.prepare(graph, self.batch)?
        } else {
            let (session, note) = backend::prepare_fitting(backend, graph, self.batch)?;
            self.notes.extend(note);
            self.batch = session.max_rows().min(self.batch);
            session
        };
        self.encoders.push((encoder, session));
        Ok(self.encoders.len() - 1)
    }

    /// The first package.
    pub fn package(&self) -> &Package {
        &self.members[0].package
    }

    /// Every package.
    pub fn packages(&self) -> impl ExactSizeIterator<Item = &Package> {
        self.members.iter().map(|member| &member.package)
    }

    /// The recipe of the first package. Whatever decides tiles is the same in all.
    pub fn recipe(&self) -> &Recipe {
        &self.package().recipe
    }

    /// The identity of all packages together: that of the only one, or a hash of those of several.
    pub fn recipe_id(&self) -> String {
        match &self.members[..] {
            [only] => only.package.recipe_id.clone(),
            all => ensemble::id(all.iter().map(|member| &member.package)),
        }
    }

    /// The gate, if it was loaded.
    pub fn gate(&mut self) -> Option<&mut Gate> {
        self.gate.as_mut()
    }

    /// The device the sessions run on, as written into results.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The numbers the sessions compute with, as written into results.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Largest number of tiles in one batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Pixels of a tile that the encoder's session makes into its input by itself: resized, cropped
    /// and recoloured as the recipe says. 0 when it takes nothing but its input.
    pub fn tile_pixels(&self) -> usize {
        self.tile_pixels
    }

    /// What a user should know about how the packages were readied.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The encoder of the first package, if it was loaded.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoders.first().map(|(encoder, _)| encoder)
    }

    /// D: the features of all encoders, side by side.
    pub fn feature_dim(&self) -> usize {
        self.encoders.iter().map(|(encoder, _)| encoder.feature_dim).sum()
    }

    /// The heads of the first package, if they were loaded. All packages have the same by name.
    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.heads_of(0)
    }

    /// The heads of one package.
    pub fn heads_of(&self, member: usize) -> impl Iterator<Item = &Head> {
        self.members[member].heads.iter().map(HeadSession::head)
    }

    fn first_session(&mut self) -> Result<(&Encoder, &mut dyn Session)> {
        let loaded = self.encoders.first_mut().ok_or_else(|| Error::usage("no encoder loaded"))?;
        Ok((&loaded.0, &mut *loaded.1))
    }

    /// `[rows, H, W, 3]` u8 to `[rows, D]` f32, while no batch is under way.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the backend fails.
    pub fn encode(&mut self, rows: usize, pixels: &[u8], features: &mut [f32]) -> Result<()> {
        self.encode_from(0, rows, pixels, features)
    }

    /// The features of the encoders from the given one on, into their columns.
    fn encode_from(
        &mut self,
        first: usize,
        rows: usize,
        pixels: &[u8],
        features: &mut [f32],
    ) -> Result<()> {
        let width = self.feature_dim();
        if let [(_, only)] = &mut self.encoders[..] {
            return only.run(rows, &[Input::Pixels(pixels)], &mut [features]);
        }
        let mut column = 0;
        for (i, (encoder, session)) in self.encoders.iter_mut().enumerate() {
            let own_width = encoder.feature_dim;
            if i >= first {
                let mut own = vec![0.0; rows * own_width];
                session.run(rows, &[Input::Pixels(pixels)], &mut [&mut own])?;
                scatter(&own, own_width, features, width, column);
            }
            column += own_width;
        }
        Ok(())
    }

    /// Batches the first encoder may have under way.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when no encoder was loaded.
    pub fn lanes(&mut self) -> Result<usize> {
        Ok(self.first_session()?.1.overlapped().map_or(1, |o| o.lanes()))
    }

    /// A slot for one batch, in memory of the kind the device copies from fastest.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when there is none left.
    pub fn slot(&mut self) -> Result<Slot> {
        let (batch, tile_pixels) = (self.batch, self.tile_pixels);
        let (encoder, session) = self.first_session()?;
        let pixels = encoder.input_px.iter().product::<usize>().max(tile_pixels);
        let bytes = batch * 3 * pixels;
        let memory = match session.overlapped() {
            Some(overlapped) => overlapped.lend(bytes)?,
            None => Box::new(vec![0; bytes]),
        };
        Ok(Slot::new(memory, batch))
    }

    /// Where the features of a slide of up to `tiles` tiles go: they stay on the device if it keeps
    /// them, one encoder makes them and heads read them. The text says why there is no room for that,
    /// the first time.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the device fails.
    pub fn features(&mut self, tiles: usize) -> Result<(Features, Option<String>)> {
        let width = self.feature_dim();
        let host = || Features::host(width, Vec::new());
        let [(_, session)] = &mut self.encoders[..] else { return Ok((host(), None)) };
        let overlapped = session.overlapped().filter(|_| self.keeps && tiles > 0);
        match overlapped.map_or(Ok(None), |overlapped| overlapped.keep(tiles)) {
            Ok(kept) => Ok((kept.map_or_else(host, Features::kept), None)),
            Err(error) if error.kind() == Kind::Limit => {
                let first = !std::mem::replace(&mut self.told, true);
                Ok((host(), first.then(|| format!("features go over the host: {error}"))))
            }
            Err(error) => Err(error),
        }
    }

    /// Host memory for the features of a slide of so many tiles, for its heads and, where batch norm looks
    /// at whole bags, for its tiles.
    pub fn slide_bytes(&self, tiles: usize) -> usize {
        let heads = || self.members.iter().flat_map(|member| &member.heads);
        let arenas = heads().map(HeadSession::row_bytes);
        let many = heads().count() > KEPT_ARENAS;
        let arenas = if many { arenas.max().unwrap_or(0) } else { arenas.sum() };
        let pixels = match self.recipe().encoder.bn_mode {
            BnMode::Batch => {
                self.encoders.first().map_or(0, |(e, _)| 3 * e.input_px[0] * e.input_px[1])
            }
            BnMode::Running => 0,
        };
        tiles * (self.feature_dim() * size_of::<f32>() + arenas + pixels)
    }

    /// Features go over the host from now on, so that heads have the memory of the device.
    pub fn keep_no_more(&mut self) {
        self.keeps = false;
    }

    /// Starts to encode the tiles of a slot; fewer than [`Engine::lanes`] batches are under way. The
    /// features stay at `into`, from that row on, or else wait to be collected.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn submit(&mut self, slot: Slot, into: Option<(Arc<dyn Kept>, usize)>) -> Result<()> {
        let (rows, how) = (slot.tiles.len(), slot.how.clone());
        let pixels = slot.into_pixels();
        if let Some(overlapped) = self.first_session()?.1.overlapped() {
            return overlapped.submit(Batch { rows, pixels, how, into });
        }
        match self.waiting.replace((rows, pixels)) {
            None => Ok(()),
            Some(_) => Err(Error::usage("a batch is under way")),
        }
    }

    /// Waits for the oldest batch: its `[rows, D]` features, if they do not stay where they are, and
    /// its memory as a free slot. The encoders of further members work on that memory now.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn collect(&mut self, features: Option<&mut [f32]>) -> Result<Slot> {
        let batch = self.batch;
        let memory = match (features, self.first_session()?.1.overlapped()) {
            (None, Some(overlapped)) => overlapped.collect(&mut []),
            (features, _) => self.collect_memory(features.unwrap_or_default()),
        };
        memory.map(|memory| Slot::new(memory, batch))
    }

    fn collect_memory(&mut self, features: &mut [f32]) -> Result<HostMemory> {
        let width = self.feature_dim();
        let (encoder, session) = self.first_session()?;
        let (own_width, tile) =
            (encoder.feature_dim, 3 * encoder.input_px.iter().product::<usize>());
        if let Some(overlapped) = session.overlapped() {
            if own_width == width {
                return overlapped.collect(&mut [features]);
            }
            let rows = features.len() / width;
            let mut own = vec![0.0; rows * own_width];
            let pixels = overlapped.collect(&mut [&mut own])?;
            scatter(&own, own_width, features, width, 0);
            self.encode_from(1, rows, &pixels[..rows * tile], features)?;
            return Ok(pixels);
        }
        let Some((rows, pixels)) = self.waiting.take() else {
            return Err(Error::usage("no batch is under way"));
        };
        self.encode(rows, &pixels[..(rows * tile).min(pixels.len())], features)?;
        Ok(pixels)
    }

    /// What the encoder of one member made of the features, if not all of them. Features made
    /// elsewhere are everybody's.
    pub fn features_of(&self, member: usize, features: &Features) -> Option<Features> {
        let at = self.members[member].encoder;
        if self.encoders.len() < 2 || features.width() != self.feature_dim() {
            return None;
        }
        let column: usize = self.encoders[..at].iter().map(|(e, _)| e.feature_dim).sum();
        features.columns(column, self.encoders[at].0.feature_dim)
    }

    /// Runs every head of one member on one bag of `[n, D]` features of its encoder. `clinical` holds
    /// one vector per head, empty for a head without clinical inputs; `done` is told after each head.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the features have another width or a clinical input is missing.
    pub fn predict(
        &mut self,
        member: usize,
        n: usize,
        features: &Rows<'_>,
        clinical: &[Vec<f32>],
        done: &mut dyn FnMut(),
    ) -> Result<Vec<BagPrediction>> {
        let many = self.members.iter().map(|m| m.heads.len()).sum::<usize>() > KEPT_ARENAS;
        let heads = &mut self.members[member].heads;
        let mut out = Vec::with_capacity(heads.len());
        for (i, head) in heads.iter_mut().enumerate() {
            let clinical = clinical.get(i).map_or(&[][..], Vec::as_slice);
            out.push(head.run(n, features, clinical)?);
            if many {
                head.release();
            }
            done();
        }
        Ok(out)
    }
}

/// Writes `[rows, own]` numbers into the columns from `column` on of `[rows, width]`.
fn scatter(from: &[f32], own: usize, to: &mut [f32], width: usize, column: usize) {
    for (from, to) in from.chunks_exact(own).zip(to.chunks_exact_mut(width)) {
        to[column..column + own].copy_from_slice(from);
    }
}

fn open_heads(
    package: &Package,
    feature_dim: Option<usize>,
    backend: &dyn Backend,
) -> Result<Vec<HeadSession>> {
    let mut loaded = Vec::with_capacity(package.recipe.heads.len());
    for spec in &package.recipe.heads {
        let weights = package.head(spec)?;
        let head = heads::build(spec, feature_dim, &weights)
            .context(|| weights.path().display().to_string())?;
        loaded.push(HeadSession::new(head, backend)?);
    }
    if loaded.is_empty() {
        return Err(Error::usage(format!(
            "{}: the package has no head: it makes features, not predictions \
             (histokern features --package ...)",
            package.dir.display()
        )));
    }
    Ok(loaded)
}

/// Tiles are handed over as they are read up to this many times the pixels of the input: beyond, less is
/// gained on the host than is lost in copying.
const MOST_TIMES: usize = 8;

/// Pixels of a tile that a session accepts of those a recipe has to offer: up to twice the sides of its
/// tiles, which levels of a slide are read at.
fn accepted(session: &mut dyn Session, recipe: &Recipe) -> Result<usize> {
    let Some(tiles) = &recipe.tiles else { return Ok(0) };
    let preprocess = &recipe.preprocess;
    let fixed = preprocess.resize.is_none() && preprocess.crop.is_none();
    let times = if tiles.mpp.is_some() { 2 } else { 1 };
    if fixed && times == 1 && recipe.stain.is_none() {
        return Ok(0);
    }
    let area = |side: u32| (side as usize).pow(2);
    let pixels = area(times * tiles.size_px).min(MOST_TIMES * area(recipe.input_px()));
    let overlapped = session.overlapped();
    let accepts = overlapped.map_or(Ok(false), |overlapped| overlapped.accept_tiles(pixels))?;
    Ok(if accepts { pixels } else { 0 })
}

//! What several verbs share: how slides are opened, the progress bar.

pub use super::device::{Device, DeviceArgs, RunArgs};

use super::Global;
use crate::error::{Error, Result};
use crate::pipeline::{Event, Observer};
use crate::slide::{Access, OpenOptions};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// How slides are opened.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct SlideArgs {
    /// Micrometres per level-0 pixel, in place of what the slide says
    #[arg(long, value_name = "UM")]
    pub mpp_override: Option<f64>,
    /// Map slides into memory instead of reading them (local files nobody changes)
    #[arg(long)]
    pub map: bool,
}

impl SlideArgs {
    /// As the slide reader takes them.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for a pixel size that is not a positive number.
    pub fn options(&self) -> Result<OpenOptions> {
        if let Some(mpp) = self.mpp_override
            && !(mpp.is_finite() && mpp > 0.0)
        {
            return Err(Error::usage(format!("--mpp-override {mpp}: a positive number is needed")));
        }
        let access = if self.map { Access::Map } else { Access::Read };
        Ok(OpenOptions { access, mpp_override: self.mpp_override, reduced: false })
    }
}

/// A folder for results, made if need be.
///
/// # Errors
/// [`crate::Kind::Io`] when it cannot be made.
pub fn make_folder(path: &PathBuf) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io(path.display().to_string(), e))
}

/// A progress bar over pictures; hidden when quiet or when nobody is looking.
pub fn picture_bar(pictures: usize, global: &Global) -> ProgressBar {
    let bar = ProgressBar::new(pictures as u64);
    if global.quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} pictures  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

/// Heads, over all bags, that take long enough to be counted aloud.
const HEADS_SHOWN: usize = 8;

/// A progress bar over slides that shows tiles per second and what the time goes into.
pub struct Progress {
    bar: ProgressBar,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slide: String,
    done: usize,
    slides: usize,
    /// What the first slide takes was told.
    has_told: bool,
    /// Whether it is told of every slide.
    is_verbose: bool,
    is_quiet: bool,
}

impl Progress {
    /// A bar for `slides` slides; hidden when quiet or when nobody is looking.
    pub fn new(slides: usize, global: &Global) -> Progress {
        let bar = ProgressBar::new(0);
        if global.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = "{prefix} [{bar:30}] {pos}/{len} tiles  {msg}";
        bar.set_style(
            ProgressStyle::with_template(style)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        Progress {
            bar,
            state: Mutex::new(State {
                slides,
                is_verbose: global.verbose,
                is_quiet: global.quiet,
                ..State::default()
            }),
        }
    }

    /// Tiles done so far.
    pub fn position(&self) -> usize {
        self.bar.position() as usize
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How much memory a slide takes at most, where that can be known: what deciding its tiles took, or what is
/// in use now and what its tiles, features and heads add.
fn memory(slide: &str, bytes: usize) -> String {
    let megabytes = |bytes: usize| format!("{} MB", bytes.div_ceil(1_000_000));
    let more = megabytes(bytes);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let read = |key: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(1024 * line.split_whitespace().next()?.parse::<usize>().ok()?)
    };
    let (Some(used), Some(peak)) = (read("VmRSS:"), read("VmHWM:")) else {
        return format!("memory: up to {more} more for the tiles, features and heads of {slide}");
    };
    let [most, peak, used] = [peak.max(used + bytes), peak, used].map(megabytes);
    format!(
        "memory: up to {most} for {slide} ({peak} so far; {used} in use, {more} more for its tiles, features and heads)"
    )
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        let Ok(mut state) = self.state.lock() else { return };
        match event {
            Event::SlideStarted { name, tiles, bytes } => {
                let is_told = !std::mem::replace(&mut state.has_told, true) || state.is_verbose;
                if bytes > 0 && is_told && !state.is_quiet {
                    self.bar.suspend(|| eprintln!("{}", memory(name, bytes)));
                }
                state.slide = name.to_string();
                self.bar.set_length(tiles as u64);
                self.bar.set_position(0);
                self.bar.reset_eta();
                let prefix = format!("[{}/{}] {}", state.done + 1, state.slides, state.slide);
                self.bar.set_prefix(prefix);
            }
            Event::Tiles { done, tiles_per_second, decode_share } => {
                self.bar.set_position(done as u64);
                self.bar.set_message(format!(
                    "{tiles_per_second:.0} tiles/s, waiting for tiles {:.0} % ({} left)",
                    100.0 * decode_share,
                    HumanDuration(Duration::from_secs(self.bar.eta().as_secs())),
                ));
            }
            Event::Heads { done, total } if total > HEADS_SHOWN => {
                self.bar.set_message(format!("heads {done}/{total}"));
            }
            Event::Heads { .. } => {}
            Event::SlideDone => state.done += 1,
            Event::Remark(_) if state.is_quiet => {}
            Event::Remark(text) => self.bar.suspend(|| eprintln!("{text}")),
        }
    }
}

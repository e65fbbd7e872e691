//! The command line: one file a verb, one row in [`Verb`].
//!
//! Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 some slides failed and the rest are done.

mod bench;
mod check;
mod cohort;
mod combined;
mod common;
mod demo;
mod device;
mod doctor;
mod encode;
mod evaluate;
mod explain;
mod features;
mod fit;
mod import;
mod info;
mod kernels;
mod nomogram;
mod nuclei;
mod nuclei_report;
mod predict;
mod recipes;
mod region;
mod report;
mod run;
mod segment;
mod synth;
mod table;
mod tile_list;
mod tiles;

use crate::error::{Kind, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What a verb that did not fail reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Some inputs failed and were reported; the others are finished.
    Partial,
}

/// Options every verb understands.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Global {
    /// CPU threads to use [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Say more about what is done
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// No progress bar, no remarks: results and errors only
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl Global {
    /// The number of threads to use.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, |n| n.get()),
            usize::from,
        )
    }

    /// A remark for people, on standard error unless quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

#[derive(Parser)]
#[command(
    name = "histokern",
    version,
    about = "Whole-slide images to predictions: own slide parser and kernels, no Python at run time",
    max_term_width = 100,
    after_help = "Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 some slides failed and the rest \
                  are done.\nStart with: histokern demo"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    global: Global,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::Args),
    Info(info::Info),
    Region(region::Region),
    Tiles(tiles::Args),
    Encode(encode::Args),
    Features(features::Args),
    Predict(predict::Args),
    Segment(segment::Args),
    Explain(explain::Args),
    Evaluate(evaluate::Args),
    Fit(fit::Args),
    Nomogram(nomogram::Args),
    Nuclei(nuclei::Args),
    Report(report::Args),
    Import(import::Args),
    Run(run::Args),
    Synth(synth::Args),
    Kernels(kernels::Args),
    Check(check::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
}

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Partial) => ExitCode::from(3),
        Err(error) => {
            eprintln!("histokern: {error}");
            ExitCode::from(if error.kind() == Kind::Usage { 2 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> Result<Outcome> {
    let global = &cli.global;
    match &cli.verb {
        Verb::Demo(args) => demo::run(args, global),
        Verb::Info(args) => info::run(args, global),
        Verb::Region(args) => region::run(args, global),
        Verb::Tiles(args) => tiles::run(args, global),
        Verb::Encode(args) => encode::run(args, global),
        Verb::Features(args) => features::run(args, global),
        Verb::Predict(args) => predict::run(args, global),
        Verb::Segment(args) => segment::run(args, global),
        Verb::Explain(args) => explain::run(args, global),
        Verb::Evaluate(args) => evaluate::run(args, global),
        Verb::Fit(args) => fit::run(args, global),
        Verb::Nomogram(args) => nomogram::run(args, global),
        Verb::Nuclei(args) => nuclei::run(args, global),
        Verb::Report(args) => report::run(args, global),
        Verb::Import(args) => import::run(args, global),
        Verb::Run(args) => run::run(args, global),
        Verb::Synth(args) => synth::run(args, global),
        Verb::Kernels(args) => kernels::run(args, global),
        Verb::Bench(args) => bench::run(args, global),
        Verb::Check(args) => check::run(args, global),
        Verb::Doctor(args) => doctor::run(args, global),
    }
}

/// Prints a JSON value to standard output.
fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}

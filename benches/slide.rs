//! From bytes to features: decoding tiles, resampling them, encoding them, a whole slide.
//!
//! `cargo bench --bench slide [FILTER]`. Where a peer does the same work it stands in the same group,
//! so that criterion measures both in one run: quote ratios, not times.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use histokern::backend::Backend;
use histokern::cpu::CpuBackend;
use histokern::image::Resampler;
use histokern::image::resample::Isa;
use histokern::pipeline::{self, Engine, Finished, Job, Options, Parts, Sink};
use histokern::recipe::Interpolation;
use histokern::slide::synthetic::layout::{self, Pyramid};
use histokern::slide::synthetic::{Compression, Jpeg, Samples, Sampling, Specimen, SpecimenSpec};
use histokern::slide::{OpenOptions, Region, Scratch, Slide, TileIndex, TilePass};
use std::hint::black_box;
use std::path::{Path, PathBuf};

const SIDE: u32 = 2048;
const TILE: u32 = 256;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A synthetic slide of `SIDE` pixels, written once per run.
fn slide(folder: &Path, name: &str, samples: Samples, jpeg: Jpeg) -> PathBuf {
    let spec = SpecimenSpec { seed: 5, fraction: None, width: SIDE, height: SIDE, mpp: 0.5 };
    let specimen = Specimen::new(&spec);
    let compression = Compression::Jpeg(jpeg);
    let pyramid =
        Pyramid { tile: TILE, steps: vec![4], compression, samples, ..Pyramid::new(&specimen) };
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    layout::generic(&pyramid).write(std::io::BufWriter::new(file)).unwrap();
    path
}

/// Every level-0 tile once: our reader on one thread, and the `tiff` crate, which decodes JPEG with
/// `zune-jpeg` and copies tile by tile through its own buffers.
fn decode(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(u64::from(SIDE) * u64::from(SIDE)));
    let ycc = Jpeg { sampling: Sampling::S420, ..Jpeg::new(75) };
    for (name, samples, jpeg) in
        [("rgb444", Samples::Rgb, Jpeg::new(75)), ("ycc420", Samples::YCbCr, ycc)]
    {
        let path = slide(folder.path(), name, samples, jpeg);
        group.bench_function(BenchmarkId::new("histokern", name), |b| {
            let slide = Slide::open(&path, &OpenOptions::default()).unwrap();
            let side = SIDE / TILE;
            let regions: Vec<Region> = (0..side * side)
                .map(|i| Region {
                    x: i64::from(i % side * TILE),
                    y: i64::from(i / side * TILE),
                    level: 0,
                    width: TILE,
                    height: TILE,
                })
                .collect();
            let mut scratch = Scratch::default();
            let mut out = vec![0; (TILE * TILE * 3) as usize];
            b.iter(|| {
                let pass = TilePass::new(&slide, 0, &regions).unwrap();
                for i in 0..pass.len() {
                    pass.read(i, &mut out, &mut scratch).unwrap();
                    black_box(&out);
                }
            });
        });
        group.bench_function(BenchmarkId::new("tiff-crate", name), |b| {
            b.iter(|| {
                let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
                let mut decoder = tiff::decoder::Decoder::new(file).unwrap();
                for chunk in 0..decoder.tile_count().unwrap() {
                    black_box(decoder.read_chunk(chunk).unwrap());
                }
            });
        });
    }
    group.finish();
}

/// One complete JPEG tile: our reader, which also reads the file and copies the pixels into a
/// region, and the two pure-Rust decoders on bytes in memory.
fn jpeg(c: &mut Criterion) {
    let spec = SpecimenSpec { seed: 5, fraction: None, width: 512, height: 512, mpp: 0.5 };
    let specimen = Specimen::new(&spec);
    let complete = Jpeg { shared_tables: false, ..Jpeg::new(75) };
    let folder = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("jpeg");
    group.throughput(Throughput::Elements(512 * 512));
    for (name, samples, jpeg) in [
        ("ycc444", Samples::YCbCr, complete),
        ("ycc422", Samples::YCbCr, Jpeg { sampling: Sampling::S422, ..complete }),
        ("ycc420", Samples::YCbCr, Jpeg { sampling: Sampling::S420, ..complete }),
    ] {
        let pyramid = Pyramid {
            tile: 512,
            steps: vec![],
            compression: Compression::Jpeg(jpeg),
            samples,
            ..Pyramid::new(&specimen)
        };
        let mut bytes = std::io::Cursor::new(Vec::new());
        layout::generic(&pyramid).write(&mut bytes).unwrap();
        let bytes = bytes.into_inner();
        let start = bytes.windows(3).position(|w| w == b"\xff\xd8\xff").unwrap();
        let end = start + bytes[start..].windows(2).position(|w| w == b"\xff\xd9").unwrap() + 2;
        let stream = &bytes[start..end];
        let path = folder.path().join(format!("{name}.tif"));
        std::fs::write(&path, &bytes).unwrap();
        group.bench_function(BenchmarkId::new("histokern", name), |b| {
            let slide = Slide::open(&path, &OpenOptions::default()).unwrap();
            let index = TileIndex { level: 0, col: 0, row: 0 };
            let mut scratch = Scratch::default();
            b.iter(|| black_box(slide.read_tile(index, &mut scratch).unwrap()));
        });
        group.bench_function(BenchmarkId::new("zune-jpeg", name), |b| {
            b.iter(|| {
                let stream = zune_core::bytestream::ZCursor::new(stream);
                black_box(zune_jpeg::JpegDecoder::new(stream).decode().unwrap())
            });
        });
        group.bench_function(BenchmarkId::new("jpeg-decoder", name), |b| {
            b.iter(|| black_box(jpeg_decoder::Decoder::new(stream).decode().unwrap()));
        });
    }
    group.finish();
}

fn resample(c: &mut Criterion) {
    let mut group = c.benchmark_group("resample");
    let filters = [("bilinear", Interpolation::Bilinear), ("bicubic", Interpolation::Bicubic)];
    for (from, to) in [(256usize, 224usize), (512, 224), (512, 256)] {
        let source: Vec<u8> = (0..from * from * 3).map(|i| (i * 37 % 251) as u8).collect();
        let mut out = vec![0; to * to * 3];
        group.throughput(Throughput::Elements((from * from) as u64));
        for ((name, filter), isa) in filters.iter().flat_map(|f| Isa::ALL.map(|isa| (f, isa))) {
            let resampler = Resampler::new(from, from, to, to, *filter).unwrap();
            let Ok(resampler) = resampler.with_isa(isa) else { continue };
            let mut scratch = Vec::new();
            group.bench_function(BenchmarkId::new(*name, format!("{from}-{to}-{isa}")), |b| {
                b.iter(|| resampler.run(black_box(&source), &mut out, &mut scratch));
            });
        }
    }
    group.finish();
}

fn demo_engine(backend: &dyn Backend, parts: Parts) -> Engine {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
    Engine::open(&package, backend, parts, 16).unwrap()
}

fn encode(c: &mut Criterion) {
    let backend = CpuBackend::new(threads(), None).unwrap();
    let mut engine = demo_engine(&backend, Parts::Encoder);
    let (side, dim) = (engine.recipe().input_px() as usize, engine.encoder().unwrap().feature_dim);
    let pixels: Vec<u8> = (0..16 * side * side * 3).map(|i| (i * 37 % 251) as u8).collect();
    let mut features = vec![0.0; 16 * dim];
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(16));
    group.bench_function("demo", |b| {
        b.iter(|| engine.encode(16, black_box(&pixels), &mut features).unwrap());
    });
    group.finish();
}

/// Counts tiles, so that throughput is per tile.
struct Count(usize);

impl Sink for Count {
    fn finished(&mut self, _: &mut Engine, _: &Job, slide: Finished) -> histokern::Result<()> {
        self.0 += slide.tiles.len();
        Ok(())
    }

    fn failed(&mut self, _: &Job, error: histokern::Error) -> histokern::Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _: &Job) {}
}

/// A slide on disk to features: hash, tissue, decode, resample, encode.
fn whole_slide(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = slide(folder.path(), "a.tif", Samples::Rgb, Jpeg::new(80));
    let backend = CpuBackend::new(threads(), None).unwrap();
    let mut engine = demo_engine(&backend, Parts::Encoder);
    let jobs = [Job { name: "a".into(), path, regions: None, mask: None }];
    let options =
        Options { open: OpenOptions::default(), decode_threads: threads(), stride_px: None };
    let mut run = || {
        let mut count = Count(0);
        let done = |_: &Job, _: &str| false;
        pipeline::run(&mut engine, &jobs, &options, &(), &done, &mut count).unwrap();
        count.0
    };
    let mut group = c.benchmark_group("whole-slide");
    group.throughput(Throughput::Elements(run() as u64)).sample_size(20);
    group.bench_function("demo", |b| b.iter(&mut run));
    group.finish();
}

criterion_group!(benches, decode, jpeg, resample, encode, whole_slide);
criterion_main!(benches);

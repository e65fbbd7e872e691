//! What `--precision` changes: every feature a little, and the ids they go by.

use histokern::backend::check::Deviation;
use histokern::backend::{Backend, Oracle, Precision};
use histokern::cpu::CpuBackend;
use histokern::pipeline::{Engine, Parts};
use std::path::Path;

/// Features of two pictures, and the ids of recipe and encoder.
fn encoded(on: &dyn Backend) -> (Vec<f32>, [String; 2]) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
    let mut engine = Engine::open(&package, on, Parts::Encoder, 2).unwrap();
    assert_eq!(engine.precision(), on.precision());
    let (side, dim) = (engine.recipe().input_px() as usize, engine.encoder().unwrap().feature_dim);
    let pixels: Vec<u8> = (0..2 * side * side * 3).map(|i| (i * 37 % 251) as u8).collect();
    let mut features = vec![0.0; 2 * dim];
    engine.encode(2, &pixels, &mut features).unwrap();
    let package = engine.package();
    (features, [package.recipe_id.clone(), package.encoder_id.clone()])
}

fn cpu(precision: Precision) -> CpuBackend {
    CpuBackend::new(2, None).unwrap().with_precision(precision).unwrap()
}

#[test]
fn rounding_grows_from_f32_to_fp16_to_bf16() {
    let [half, brain, full] = Precision::ALL.map(|precision| encoded(&cpu(precision)).0);
    let error = |features: &[f32]| Deviation::between(features, &full).unwrap().relative_l2;
    let (half, brain) = (error(&half), error(&brain));
    assert!(half > 1e-5 && half < 5e-3, "fp16: {half:e}");
    assert!(brain > 3.0 * half && brain < 5e-2, "bf16: {brain:e} where fp16 is {half:e}");
}

#[test]
fn features_of_other_numbers_go_by_another_id() {
    let (_, usual) = encoded(&cpu(Precision::F16));
    for precision in [Precision::Bf16, Precision::F32] {
        let (_, ids) = encoded(&cpu(precision));
        assert_eq!(ids, usual.clone().map(|id| format!("{id}-{precision}")));
        let (_, of_reference) = encoded(&Oracle(precision.rounding()));
        assert_eq!(ids, of_reference);
        let name = cpu(precision).name();
        assert!(name.contains(&precision.to_string()), "{name}");
    }
}

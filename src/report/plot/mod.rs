//! Figures of a study, each drawn once as a list of marks and written twice, as SVG and as PNG.
//!
//! [`figure`] holds the marks, [`svg`] and [`raster`] write them, [`axes`] places data; the other
//! modules draw one subject each. Text is measured, and painted into the PNG, with a font of this
//! program ([`lettering`]), so nothing depends on what a system has installed. Every figure has a
//! title and a description in words; lines differ by colour (safe for colour-blind readers, Okabe and
//! Ito 2008) and by dash, so that they survive a black-and-white print.

pub mod axes;
pub mod classes;
pub mod curves;
pub mod figure;
pub mod forest;
pub mod lettering;
pub mod measured;
pub mod nomogram;
mod raster;
pub mod survival;
pub mod svg;
pub mod weep;

pub use figure::Figure;

/// A number for people: four significant digits, without a tail of zeros, and with an exponent where
/// it is very small or large.
pub fn number(v: f64) -> String {
    match v.abs() {
        0.0 => return "0".into(),
        a if !(1e-4..1e7).contains(&a) => return format!("{v:.1e}"),
        _ => {}
    }
    let digits = (3 - v.abs().log10().floor() as i32).clamp(0, 8) as usize;
    let text = format!("{v:.digits$}");
    match text.split_once('.') {
        Some((whole, part)) if part.trim_end_matches('0').is_empty() => whole.into(),
        Some(_) => text.trim_end_matches('0').into(),
        None => text,
    }
}

/// An odds or hazard ratio for people: two decimals where they say enough.
pub fn ratio(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 0.095 => format!("{v:.2}"),
        _ => number(v),
    }
}

/// A p-value as papers print it.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {p:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.831, 12.0, 1234.5, -0.000_123_456, 1e-12, 0.1 + 0.2].map(number);
        assert_eq!(shown, ["0", "0.831", "12", "1234", "-0.0001235", "1.0e-12", "0.3"]);
        assert_eq!(
            [0.0214, 0.5, 1.046, 24.72, 250.4].map(ratio),
            ["0.0214", "0.50", "1.05", "24.7", "250"]
        );
        assert_eq!([p_value(0.000_9), p_value(0.04)], ["p < 0.001", "p = 0.040"]);
    }
}

//! Figures as SVG, and the check that an SVG file holds nothing a figure would not.

use super::figure::{Anchor, Figure, Mark, Rgb, Stroke};
use super::lettering::FAMILY;
use crate::error::{Error, Result};
use std::fmt::Write;

/// `text` as it may stand between tags or in an attribute of XML or HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Two decimals at most.
fn short(v: f64) -> String {
    let text = format!("{v:.2}");
    match text.trim_end_matches('0').trim_end_matches('.') {
        "-0" => "0".into(),
        text => text.into(),
    }
}

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn path(points: &[[f64; 2]]) -> String {
    let mut out = String::new();
    for (i, [x, y]) in points.iter().enumerate() {
        let _ = write!(out, "{}{} {}", if i == 0 { "M" } else { "L" }, short(*x), short(*y));
    }
    out
}

fn opacity(v: f64) -> String {
    if v < 1.0 { format!(" opacity=\"{}\"", short(v)) } else { String::new() }
}

fn dash(stroke: &Stroke) -> String {
    if stroke.dash.is_empty() {
        return String::new();
    }
    let lengths: Vec<String> = stroke.dash.iter().map(|v| short(v * stroke.width)).collect();
    format!(" stroke-dasharray=\"{}\"", lengths.join(" "))
}

/// The document: a title and a description that screen readers announce, then the marks.
pub fn write(figure: &Figure) -> String {
    let (w, h) = (short(figure.width), short(figure.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{w}\" height=\"{h}\" \
         viewBox=\"0 0 {w} {h}\" font-family=\"{FAMILY}\">\n<title>{}</title>\n<desc>{}</desc>\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n",
        escape(&figure.title),
        escape(&figure.desc)
    );
    for mark in &figure.marks {
        out.push_str(&element(mark));
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

fn element(mark: &Mark) -> String {
    match mark {
        Mark::Line { points, stroke } => format!(
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" \
             stroke-linejoin=\"round\"{}/>",
            path(points),
            hex(stroke.rgb),
            short(stroke.width),
            dash(stroke)
        ),
        Mark::Area { points, rgb, opacity: o } => {
            format!("<path d=\"{}Z\" fill=\"{}\"{}/>", path(points), hex(*rgb), opacity(*o))
        }
        Mark::Dots { points, radius, rgb, opacity: o } => {
            let mut d = String::new();
            for [x, y] in points {
                let _ = write!(d, "M{} {}h0", short(*x), short(*y));
            }
            let (width, rgb, o) = (short(2.0 * radius), hex(*rgb), opacity(*o));
            format!(
                "<path d=\"{d}\" fill=\"none\" stroke=\"{rgb}\" stroke-width=\"{width}\" \
                 stroke-linecap=\"round\"{o}/>"
            )
        }
        Mark::Text { at: [x, y], text, size, anchor, rgb, upwards } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let (x, y) = (short(*x), short(*y));
            let turn = if *upwards {
                format!(" transform=\"rotate(-90 {x} {y})\"")
            } else {
                String::new()
            };
            format!(
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\" text-anchor=\"{anchor}\" \
                 fill=\"{}\"{turn}>{}</text>",
                short(*size),
                hex(*rgb),
                escape(text)
            )
        }
    }
}

/// Elements a figure consists of, each with its attributes.
const ELEMENTS: [(&str, &[&str]); 6] = [
    ("svg", &["xmlns", "role", "width", "height", "viewBox", "font-family"]),
    ("title", &[]),
    ("desc", &[]),
    ("rect", &["width", "height", "fill"]),
    (
        "path",
        &[
            "d",
            "fill",
            "stroke",
            "stroke-width",
            "stroke-linejoin",
            "stroke-linecap",
            "stroke-dasharray",
            "opacity",
        ],
    ),
    ("text", &["x", "y", "font-size", "text-anchor", "fill", "transform"]),
];
/// Largest SVG file put into a page.
pub const MAX_BYTES: usize = 64 << 20;

/// Title and description of an SVG document that consists of nothing but what [`write()`](write) writes: the
/// elements and attributes of a figure, without script, link, style or entity. Such a document can
/// stand in a web page whoever wrote it.
///
/// # Errors
/// [`crate::Kind::Unsupported`] saying what else is in it.
pub fn check(document: &str) -> Result<(String, String)> {
    if document.len() > MAX_BYTES {
        return Err(Error::limit(format!("{} bytes of SVG", document.len())));
    }
    let foreign =
        |what: String| Error::unsupported(format!("not a figure of this program: {what}"));
    let mut rest = document.trim();
    let mut open: Vec<&str> = Vec::new();
    let (mut title, mut desc) = (String::new(), String::new());
    while !rest.is_empty() {
        let (text, tail) = rest.split_once('<').unwrap_or((rest, ""));
        if open.is_empty() && !text.trim().is_empty() {
            return Err(foreign("text outside the drawing".into()));
        }
        let plain = unescape(text).ok_or_else(|| foreign("an unknown entity".into()))?;
        match open.last() {
            Some(&"title") => title.push_str(&plain),
            Some(&"desc") => desc.push_str(&plain),
            _ => {}
        }
        if tail.is_empty() {
            break;
        }
        let (tag, after) =
            tail.split_once('>').ok_or_else(|| foreign("a tag without an end".into()))?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) || (open.is_empty() && !rest.trim().is_empty()) {
                return Err(foreign(format!("a stray </{name}>")));
            }
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |t| (t, true));
        let name = start_tag(tag).map_err(foreign)?;
        if open.is_empty() != (name == "svg") {
            return Err(foreign(format!("a <{name}> out of place")));
        }
        if !alone {
            open.push(name);
        }
    }
    if !open.is_empty() || title.is_empty() {
        return Err(foreign("an unfinished drawing, or one without title".into()));
    }
    Ok((title, desc))
}

/// Name of a start tag all of whose attributes are a figure's.
fn start_tag(tag: &str) -> Result<&str, String> {
    let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
    let known = ELEMENTS.iter().find(|(n, _)| *n == name);
    let (_, allowed) = known.ok_or_else(|| format!("<{name}>"))?;
    while !attributes.trim().is_empty() {
        let bad = || format!("attributes of <{name}>");
        let (key, tail) = attributes.trim_start().split_once("=\"").ok_or_else(bad)?;
        let (value, tail) = tail.split_once('"').ok_or_else(bad)?;
        let harmless = if key == "xmlns" {
            value == "http://www.w3.org/2000/svg"
        } else {
            let sign = |c: char| c.is_ascii_alphanumeric() || " .,-#".contains(c);
            let turn = key == "transform" && value.starts_with("rotate(");
            value
                .strip_prefix("rotate(")
                .filter(|_| turn)
                .unwrap_or(value)
                .trim_end_matches(|c| turn && c == ')')
                .chars()
                .all(sign)
        };
        if !allowed.contains(&key) || !harmless {
            return Err(format!("{key} of <{name}>"));
        }
        attributes = tail;
    }
    Ok(name)
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut parts = text.split('&');
    out.push_str(parts.next()?);
    for part in parts {
        let (entity, tail) = part.split_once(';')?;
        out.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            _ => return None,
        });
        out.push_str(tail);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Figure {
        let mut figure = Figure::new("a", "A <b> & 'c'", 100.0, 60.0);
        figure.desc = "x < y".into();
        figure.line(&[[0.0, 0.0], [1.0 / 3.0, 9.0]], Stroke::of(1));
        figure.dots(&[[5.0, 5.0], [5.1, 5.1], [7.0, 7.0]], 2.0, [1, 2, 3], 0.5);
        figure.area(vec![[0.0, 0.0], [9.0, 0.0], [9.0, 9.0]], [255, 0, 0], 0.25);
        figure.text_upwards([4.0, 4.0], "<script>alert(1)</script>");
        figure
    }

    #[test]
    fn figures_pass_their_own_check_with_title_and_description() {
        let text = sample().svg();
        assert!(text.contains("role=\"img\"") && !text.contains("<script"), "{text}");
        assert!(text.contains("M5 5h0M7 7h0"), "{text}");
        let (title, desc) = check(&text).unwrap();
        assert_eq!((title.as_str(), desc.as_str()), ("A <b> & 'c'", "x < y"));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = sample().svg();
        let spoilt = [
            ("</svg>", "<script>alert(1)</script></svg>"),
            ("<rect ", "<rect onload=\"alert(1)\" "),
            ("fill=\"#ff0000\"", "fill=\"url(http://a.b)\""),
            ("<desc>", "<desc>&xxe;"),
            ("<desc>", "<a href=\"x\"><desc>"),
            ("<title>", "<style>*{}</style><title>"),
            ("<svg ", "<!DOCTYPE svg><svg "),
            ("</svg>", "</svg><svg></svg>"),
            ("</svg>", ""),
            ("<path d=\"M", "<path style=\"x\" d=\"M"),
            ("role=\"img\"", "role='img'"),
        ];
        for (from, to) in spoilt {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            assert!(check(&bad).is_err(), "{to} passes");
        }
        assert!(check("").is_err() && check("plain").is_err() && check("<svg").is_err());
    }
}

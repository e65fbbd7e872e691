//! `histokern report`: one page that needs nothing but itself and lets nothing from a file become
//! markup.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn run(args: &[&str]) {
    let done = histokern(args);
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

const EVIL: &str = "<img src=x onerror=alert(1)>";

/// An evaluation whose column names and cells are hostile.
fn evaluation(dir: &Path) -> String {
    let (mut scores, mut labels) = ("id,score\n".to_string(), format!("id,label,{EVIL}\n"));
    for i in 0..40 {
        writeln!(scores, "r{i},0.{:02}", (i * 37) % 100).unwrap();
        writeln!(labels, "r{i},{},{}", u8::from((i * 37) % 100 > 45 + i % 13), ["a", EVIL][i % 2])
            .unwrap();
    }
    fs::write(dir.join("s.csv"), scores).unwrap();
    fs::write(dir.join("l.csv"), labels).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let args = ["evaluate", &at("s.csv"), "--labels", &at("l.csv"), "--task", "binary"];
    run(&[&args[..], &["--rounds", "100", "--out", &at("eval")]].concat());
    at("eval")
}

/// Start tags of an element, as they stand.
fn tags<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let open = format!("<{name}");
    let starts = html.match_indices(&open).map(|(i, _)| &html[i..]);
    let whole = starts.filter(|t| t[open.len()..].starts_with([' ', '>', '\n']));
    whole.map(|t| &t[..=t.find('>').unwrap()]).collect()
}

/// What a screen reader, a printer and a computer without network need.
fn is_self_contained(html: &str) {
    assert!(html.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
    for element in ["script", "iframe", "object", "embed", "form", "base"] {
        assert!(tags(html, element).is_empty(), "<{element}>");
    }
    for tag in tags(html, "img") {
        assert!(tag.contains("src=\"data:image/"), "{tag}");
        assert!(tag.contains(" alt=\"") && !tag.contains("alt=\"\""), "{tag}");
    }
    let links = tags(html, "link");
    assert!(links.iter().all(|l| l.contains("href=\"data:,\"")), "{links:?}");
    assert!(!html.contains("https:"));
    for part in html.split("http:").skip(1) {
        assert!(
            part.starts_with("//www.w3.org/2000/svg\""),
            "http:{}",
            &part[..part.len().min(60)]
        );
    }
    assert!(html.contains("@media print") && html.contains("default-src 'none'"));
    assert_eq!(tags(html, "h1").len(), 1);
    for tag in tags(html, "section") {
        let id = tag.split('"').nth(1).unwrap();
        assert!(html.contains(&format!("<a href=\"#{id}\">")), "{id} is not in the contents");
        assert!(html.contains(&format!("<h2 id=\"{id}\">")), "{id} has no heading");
    }
    for tag in tags(html, "svg") {
        assert!(tag.contains("role=\"img\""), "{tag}");
    }
    assert_eq!(tags(html, "table").len(), tags(html, "caption").len());
}

#[test]
fn results_become_one_page_without_foreign_markup() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let eval = evaluation(dir.path());
    let rows: String = (0..40)
        .map(|i| format!("{},{i},{}\n", (i * 7) % 11, u8::from((i * 13) % 40 < 2 * i % 37)))
        .collect();
    fs::write(at("d.csv"), format!("age,{EVIL},y\n{rows}")).unwrap();
    run(&[
        "fit",
        "logistic",
        &at("d.csv"),
        "--outcome",
        "y",
        "--features",
        &format!("age,{EVIL}"),
        "-o",
        &at("m.toml"),
    ]);
    let folder = dir.path().join("nuclei");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("nuclei.csv"), format!("area,{EVIL}\n12.3456789,{EVIL}\n")).unwrap();
    fs::copy(dir.path().join("eval/roc.png"), folder.join("overlay.png")).unwrap();
    let page = at("page.html");
    run(&["report", &eval, &at("m.toml"), &at("nuclei"), "-o", &page, "--title", EVIL]);
    let html = fs::read_to_string(&page).unwrap();
    is_self_contained(&html);
    assert!(!html.contains("<img src=x") && html.contains("&lt;img src=x onerror=alert(1)&gt;"));
    // Five figures of the evaluation, two of the model.
    assert_eq!(tags(&html, "svg").len(), 7);
    assert_eq!(tags(&html, "img").len(), 1);
    for word in ["Rates at threshold", "Characteristics by outcome", "Coefficients", "12.3457"] {
        assert!(html.contains(word), "no {word}");
    }
}

#[test]
fn a_figure_with_a_script_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let eval = evaluation(dir.path());
    let svg = Path::new(&eval).join("roc.svg");
    let text = fs::read_to_string(&svg).unwrap();
    fs::write(&svg, text.replace("</svg>", "<script>alert(1)</script></svg>")).unwrap();
    let page = dir.path().join("page.html");
    let done = histokern(&["report", &eval, "-o", &page.display().to_string()]);
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && err.contains("roc.svg") && err.contains("<script>"), "{err}");
    assert!(!page.exists());
}

#[test]
fn large_pictures_are_shrunk_to_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("maps");
    fs::create_dir(&folder).unwrap();
    let (width, height) = (2400, 600);
    let mut encoder =
        png::Encoder::new(fs::File::create(folder.join("map.png")).unwrap(), width, height);
    encoder.set_color(png::ColorType::Rgb);
    let red: Vec<u8> = [200, 30, 60].repeat((width * height) as usize);
    encoder.write_header().unwrap().write_image_data(&red).unwrap();
    let page = dir.path().join("page.html").display().to_string();
    run(&["report", &folder.display().to_string(), "-o", &page]);
    let html = fs::read_to_string(&page).unwrap();
    let (_, data) = html.split_once("data:image/jpeg;base64,").expect("no JPEG");
    let jpeg = STANDARD.decode(data.split('"').next().unwrap()).unwrap();
    let mut decoder = jpeg_decoder::Decoder::new(&jpeg[..]);
    let pixels = decoder.decode().unwrap();
    let info = decoder.info().unwrap();
    assert_eq!((info.width, info.height), (1200, 300));
    assert!(pixels.iter().zip(red).all(|(a, b)| a.abs_diff(b) < 6));
}

#[test]
fn folders_without_results_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html").display().to_string();
    for (input, word) in [("", "nothing to show"), ("absent", "no such folder")] {
        let input = dir.path().join(input).display().to_string();
        let done = histokern(&["report", &input, "-o", &page]);
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{err}");
        assert!(err.contains(word), "{err}");
    }
    // A PNG that is none, and a result.json named by a path in status.csv.
    fs::write(dir.path().join("a.png"), "GIF89a").unwrap();
    let done = histokern(&["report", &dir.path().display().to_string(), "-o", &page]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("a.png"));
}

/// Slides with heatmap, attended tiles and links, from a run of `predict`.
#[test]
fn slides_are_shown_with_tiles_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let slide = at("a b.svs");
    run(&["synth", "-o", &slide, "--quiet", "--seed", "3", "--width", "2048", "--height", "2048"]);
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    run(&["predict", &slide, "--package", &package, "--out", &at("out")]);
    let page = at("page.html");
    run(&["report", &at("out"), "-o", &page, "--tiles", "3"]);
    let html = fs::read_to_string(&page).unwrap();
    is_self_contained(&html);
    // One heatmap, three tiles at each end.
    assert_eq!(tags(&html, "img").len(), 7);
    let link = "href=\"out/a%20b/tiles.geojson\"";
    assert!(html.contains(link), "no {link}");
    assert!(html.contains("Attention heatmap of a b.svs"));
    // A slide that changed since is not shown.
    fs::write(&slide, "gone").unwrap();
    run(&["report", &at("out"), "-o", &page, "--tiles", "3"]);
    assert_eq!(tags(&fs::read_to_string(&page).unwrap(), "img").len(), 1);
}

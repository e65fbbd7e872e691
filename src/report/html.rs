//! One HTML page that needs nothing but itself: style within, figures as SVG, pictures as data URIs.
//!
//! Headings form an outline with a table of contents, pictures have alternative texts, tables have
//! header cells; a print style sheet keeps figures whole. All text is escaped.

use super::plot::svg;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::fmt::Write;

pub use svg::escape;

/// How the page looks on a screen and on paper.
const STYLE: &str = include_str!("html.css");

/// Figures of more pixels are not set two to a row.
const HALF_PAGE: f64 = 700.0;

/// What a cell of a table holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A number, set to the right.
    Number(String),
    /// A link: text and address.
    Link(String, String),
}

impl Cell {
    /// A cell whose text tells whether it is a number.
    pub fn of(text: &str) -> Cell {
        let text = text.to_string();
        if text.parse::<f64>().is_ok() { Cell::Number(text) } else { Cell::Text(text) }
    }
}

/// A page in the making.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    contents: String,
    body: String,
    sections: usize,
    open: bool,
}

impl Page {
    /// A page with its heading.
    pub fn new(title: &str) -> Page {
        Page {
            title: title.into(),
            contents: String::new(),
            body: String::new(),
            sections: 0,
            open: false,
        }
    }

    /// Starts a section of the table of contents.
    pub fn section(&mut self, title: &str) {
        self.close();
        self.sections += 1;
        let (id, title) = (self.sections, escape(title));
        let _ = writeln!(self.contents, "<li><a href=\"#s{id}\">{title}</a></li>");
        let _ = writeln!(
            self.body,
            "<section aria-labelledby=\"s{id}\">\n<h2 id=\"s{id}\">{title}</h2>"
        );
        self.open = true;
    }

    fn close(&mut self) {
        if self.open {
            self.body.push_str("</section>\n");
        }
    }

    /// A heading within a section.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(text));
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// A remark a reader should not miss.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"note\" role=\"note\">{}</p>", escape(text));
    }

    /// Names and values.
    pub fn list(&mut self, rows: &[(String, String)]) {
        self.body.push_str("<dl>\n");
        for (name, value) in rows {
            let _ = writeln!(
                self.body,
                "<div><dt>{}</dt><dd>{}</dd></div>",
                escape(name),
                escape(value)
            );
        }
        self.body.push_str("</dl>\n");
    }

    /// A table with its caption; the first cell of each row names it.
    pub fn table(&mut self, caption: &str, header: &[String], rows: &[Vec<Cell>]) {
        let _ = write!(
            self.body,
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table>\n\
             <caption>{0}</caption>\n<thead><tr>",
            escape(caption)
        );
        for cell in header {
            let _ = write!(self.body, "<th scope=\"col\">{}</th>", escape(cell));
        }
        self.body.push_str("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let tag = if i == 0 { "th scope=\"row\"" } else { "td" };
                let end = if i == 0 { "th" } else { "td" };
                let _ = match cell {
                    Cell::Text(text) => write!(self.body, "<{tag}>{}</{end}>", escape(text)),
                    Cell::Number(text) => {
                        write!(self.body, "<{tag} class=\"n\">{}</{end}>", escape(text))
                    }
                    Cell::Link(text, to) => {
                        write!(self.body, "<{tag}>{}</{end}>", link(text, to))
                    }
                };
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody>\n</table></div>\n");
    }

    /// A figure: an SVG document that [`svg::check`] accepted, and what it shows, folded away for those
    /// who see it.
    pub fn figure(&mut self, document: &str, words: &str) {
        let document = document.trim_start_matches(|c| c != '<');
        let width = document.split_once(" width=\"").and_then(|(_, rest)| rest.split_once('"'));
        let wide = width.and_then(|(w, _)| w.parse::<f64>().ok()).is_some_and(|w| w > HALF_PAGE);
        let class = if wide { "plot wide" } else { "plot" };
        let _ = writeln!(
            self.body,
            "<figure class=\"{class}\">\n{document}<figcaption><details>\
             <summary>In words</summary><p>{}</p></details></figcaption>\n</figure>",
            escape(words)
        );
    }

    /// Pictures side by side: bytes of a PNG or JPEG file, alternative text and caption of each.
    pub fn pictures(&mut self, pictures: &[(Vec<u8>, String, String)]) {
        self.body.push_str("<div class=\"pictures\">\n");
        for (bytes, alt, caption) in pictures {
            let data = STANDARD.encode(bytes);
            let kind = if bytes.starts_with(b"\xff\xd8") { "jpeg" } else { "png" };
            let _ = writeln!(
                self.body,
                "<figure><img src=\"data:image/{kind};base64,{data}\" alt=\"{}\">\
                 <figcaption>{}</figcaption></figure>",
                escape(alt),
                escape(caption)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Links side by side: text and address.
    pub fn links(&mut self, links: &[(String, String)]) {
        let links: Vec<String> = links.iter().map(|(text, to)| link(text, to)).collect();
        let _ = writeln!(self.body, "<p>{}</p>", links.join(" \u{b7} "));
    }

    /// The document. `footer` says what made it.
    pub fn finish(mut self, footer: &str) -> String {
        self.close();
        let (title, footer) = (escape(&self.title), escape(footer));
        // Only this very style may apply, and no script at all.
        let hash = STANDARD.encode(Sha256::digest(format!("\n{STYLE}")));
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
             style-src 'sha256-{hash}'\">\n\
             <link rel=\"icon\" href=\"data:,\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>{title}</h1>\
             </header>\n<nav aria-label=\"Contents\"><h2>Contents</h2>\n<ol>\n{}</ol></nav>\n<main>\n{}\
             </main>\n<footer><p>{footer}</p></footer>\n</body>\n</html>\n",
            self.contents, self.body
        )
    }
}

fn link(text: &str, to: &str) -> String {
    format!("<a href=\"{}\">{}</a>", escape(&address(to)), escape(text))
}

/// A relative path as an address: bytes a URL gives another meaning are encoded, so that no file
/// name becomes a scheme, a query or a fragment.
fn address(path: &str) -> String {
    let mut out = String::new();
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"/._-~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_file_becomes_markup() {
        let bad = "<script>alert('x')</script>\" onload=\"1&amp;\u{0}";
        let mut page = Page::new(bad);
        page.section(bad);
        page.heading(bad);
        page.paragraph(bad);
        page.note(bad);
        page.list(&[(bad.into(), bad.into())]);
        let row = vec![Cell::Text(bad.into()), Cell::Link(bad.into(), bad.into())];
        page.table(bad, &[bad.into()], &[row]);
        page.pictures(&[(vec![1], bad.into(), bad.into())]);
        page.links(&[(bad.into(), "javascript:alert(1)".into())]);
        let html = page.finish(bad);
        assert!(!html.contains("<script") && !html.contains("\" onload"), "{html}");
        assert!(!html.contains("javascript:") && !html.contains('\u{0}'), "{html}");
        assert_eq!(html.matches("<section").count(), html.matches("</section>").count());
    }

    #[test]
    fn paths_are_addresses_of_this_folder() {
        assert_eq!(address("a b/c#1?.geojson"), "a%20b/c%231%3F.geojson");
        assert_eq!(address("data:text"), "data%3Atext");
    }
}

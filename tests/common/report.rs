//! Tables of what tests found: printed, and left under `target/report/` for `scripts/test` to show.

use std::path::{Path, PathBuf};

/// A table with aligned columns.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|cell| cell.to_string()).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// Numbers stand right, everything else left.
    pub fn text(&self) -> String {
        let columns = self.rows[0].len();
        let width =
            |c: usize| self.rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let numeric = |cell: &str| cell == "-" || cell.parse::<f64>().is_ok();
        let right: Vec<bool> =
            (0..columns).map(|c| self.rows[1..].iter().all(|row| numeric(&row[c]))).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                line += &if right[c] { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// Writes it under a name, whole.
    pub fn save(&self, name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("report");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        let mut temporary = tempfile::NamedTempFile::new_in(&folder).unwrap();
        std::io::Write::write_all(&mut temporary, self.text().as_bytes()).unwrap();
        temporary.persist(&file).unwrap();
        file
    }
}

/// What a row says of its verdict.
pub fn verdict(ok: bool) -> String {
    if ok { "ok".into() } else { "FAILED".into() }
}

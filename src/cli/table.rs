//! CSV tables for the statistics verbs: named columns, rows known by an id.

use crate::error::{Context, Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// A CSV file with a header.
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Line of each row in the file.
    lines: Vec<u64>,
    path: String,
}

/// Whether a cell holds no value.
pub fn missing(cell: &str) -> bool {
    cell.is_empty() || cell.eq_ignore_ascii_case("na") || cell.eq_ignore_ascii_case("nan")
}

impl Table {
    /// Reads a whole file.
    ///
    /// # Errors
    /// Naming the file and line: unreadable, ragged rows, no row, a repeated column name.
    pub fn read(path: &Path) -> Result<Table> {
        let name = path.display().to_string();
        let wrong = |e: csv::Error| Error::malformed(e.to_string()).context(name.clone());
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(wrong)?;
        let names: Vec<String> =
            reader.headers().map_err(wrong)?.iter().map(String::from).collect();
        for (i, column) in names.iter().enumerate() {
            if names[..i].contains(column) {
                return Err(Error::malformed(format!("two columns {column}")).context(name));
            }
        }
        let (mut rows, mut lines) = (Vec::new(), Vec::new());
        for record in reader.records() {
            let record = record.map_err(wrong)?;
            lines.push(record.position().map_or(0, csv::Position::line));
            rows.push(record.iter().map(String::from).collect());
        }
        if rows.is_empty() {
            return Err(Error::malformed("no rows").context(name));
        }
        Ok(Table { names, rows, lines, path: name })
    }

    /// Column names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is a column `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Puts the file's name in front of an error.
    pub fn blame(&self, error: Error) -> Error {
        error.context(self.path.clone())
    }

    /// The cells of a column.
    ///
    /// # Errors
    /// Naming the file: no such column.
    pub fn text(&self, name: &str) -> Result<Vec<&str>> {
        let column = self.names.iter().position(|n| n == name).ok_or_else(|| {
            self.blame(Error::usage(format!("no column {name} in {}", self.names.join(", "))))
        })?;
        Ok(self.rows.iter().map(|row| row[column].as_str()).collect())
    }

    /// A column of finite numbers.
    ///
    /// # Errors
    /// Naming the file, line and column: no such column, a cell that is no finite number.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let parse = |(row, cell): (usize, &str)| match cell.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(self.at(row, name, &format!("`{cell}` is no finite number"))),
        };
        self.text(name)?.into_iter().enumerate().map(parse).collect()
    }

    /// A column of 0 and 1 (or false and true).
    ///
    /// # Errors
    /// As [`Table::numbers`].
    pub fn flags(&self, name: &str) -> Result<Vec<bool>> {
        let parse = |(row, cell): (usize, &str)| match cell.to_ascii_lowercase().as_str() {
            "1" | "true" | "1.0" => Ok(true),
            "0" | "false" | "0.0" => Ok(false),
            _ => Err(self.at(row, name, &format!("`{cell}` is neither 0 nor 1"))),
        };
        self.text(name)?.into_iter().enumerate().map(parse).collect()
    }

    /// An error about one cell.
    pub fn at(&self, row: usize, column: &str, what: &str) -> Error {
        Error::malformed(format!("line {}: {column}: {what}", self.lines[row]))
            .context(self.path.clone())
    }

    /// Puts the file and line of a row in front of an error about it.
    pub fn at_row(&self, row: usize, error: Error) -> Error {
        error.context(format!("line {}", self.lines[row])).context(self.path.clone())
    }

    /// Keeps the rows with these indices, in this order.
    pub fn select(&self, rows: &[usize]) -> Table {
        Table {
            names: self.names.clone(),
            rows: rows.iter().map(|&i| self.rows[i].clone()).collect(),
            lines: rows.iter().map(|&i| self.lines[i]).collect(),
            path: self.path.clone(),
        }
    }

    /// Rows in which none of `columns` is missing, and how many were left out.
    ///
    /// # Errors
    /// Naming the file: no such column, no complete row.
    pub fn complete(&self, columns: &[&str]) -> Result<(Table, usize)> {
        let cells = columns.iter().map(|c| self.text(c)).collect::<Result<Vec<_>>>()?;
        let whole = |i: &usize| cells.iter().all(|c| !missing(c[*i]));
        let keep: Vec<usize> = (0..self.len()).filter(whole).collect();
        if keep.is_empty() {
            return Err(
                self.blame(Error::malformed(format!("no row has all of {}", columns.join(", "))))
            );
        }
        Ok((self.select(&keep), self.len() - keep.len()))
    }

    /// The rows of this table in the order of `ids`, found in its column `column`.
    ///
    /// # Errors
    /// Naming the file: an id twice in the table, or not in it.
    pub fn aligned(&self, column: &str, ids: &[&str]) -> Result<Table> {
        let mut place = HashMap::new();
        for (row, id) in self.text(column)?.into_iter().enumerate() {
            if let Some(first) = place.insert(id, row) {
                let line = self.lines[first];
                return Err(self.at(row, column, &format!("`{id}` already stands in line {line}")));
            }
        }
        let absent: Vec<&str> = ids.iter().copied().filter(|id| !place.contains_key(id)).collect();
        if let Some(first) = absent.first() {
            return Err(self.blame(Error::malformed(format!(
                "no row for `{first}` ({} of {} ids have none)",
                absent.len(),
                ids.len()
            ))));
        }
        let rows: Vec<usize> = ids.iter().map(|id| place[id]).collect();
        Ok(self.select(&rows))
    }

    /// Refuses an id that stands in two rows.
    ///
    /// # Errors
    /// Naming the file and both lines.
    pub fn unique(&self, column: &str) -> Result<()> {
        let ids = self.text(column)?;
        self.aligned(column, &ids[..1]).map(|_| ()).context(|| "ids".into())
    }
}

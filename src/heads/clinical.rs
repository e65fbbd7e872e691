//! Clinical values from a table of raw cells to the network's input.

use crate::error::{Error, Result};
use crate::recipe::Clinical;
use std::collections::BTreeMap;
use std::path::Path;

/// A CSV of patients: one row each, cells as they are.
#[derive(Clone, Debug)]
pub struct Table {
    file: String,
    columns: Vec<String>,
    rows: BTreeMap<String, Vec<String>>,
}

impl Table {
    /// Reads a CSV with a header. Patients are told apart by the column `id`, or the first one.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], [`crate::Kind::Malformed`] naming the line, [`crate::Kind::Usage`]
    /// when the column is missing; a patient or a column that occurs twice is an error.
    pub fn read(path: &Path, id: Option<&str>) -> Result<Table> {
        let file = path.display().to_string();
        let text = std::fs::read(path).map_err(|e| Error::io(file.clone(), e))?;
        Table::parse(&text, id, &file).map_err(|e| e.context(file))
    }

    fn parse(text: &[u8], id: Option<&str>, file: &str) -> Result<Table> {
        // Spreadsheets put a byte-order mark in front of the first column's name.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
        let bad = |e: csv::Error| Error::malformed(e.to_string()).caused_by(e);
        let columns: Vec<String> =
            reader.headers().map_err(bad)?.iter().map(str::to_string).collect();
        if let Some((_, name)) =
            columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name))
        {
            return Err(Error::malformed(format!("column {name:?} occurs twice")));
        }
        let id_column = match id {
            None => 0,
            Some(id) => columns
                .iter()
                .position(|c| c == id)
                .ok_or_else(|| Error::usage(format!("no column {id:?}")))?,
        };
        let mut rows = BTreeMap::new();
        for record in reader.records() {
            let cells: Vec<String> = record.map_err(bad)?.iter().map(str::to_string).collect();
            let patient = cells.get(id_column).cloned().unwrap_or_default();
            if rows.insert(patient.clone(), cells).is_some() {
                return Err(Error::malformed(format!("patient {patient:?} occurs twice")));
            }
        }
        Ok(Table { file: file.into(), columns, rows })
    }

    /// The cell of one patient in a column, as it is.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the patient or the column is missing.
    pub fn cell(&self, patient: &str, column: &str) -> Result<&str> {
        let cells = self
            .rows
            .get(patient)
            .ok_or_else(|| Error::usage(format!("{}: no patient {patient:?}", self.file)))?;
        let at = self
            .columns
            .iter()
            .position(|c| c == column)
            .ok_or_else(|| Error::usage(format!("{}: no column {column:?}", self.file)))?;
        Ok(cells.get(at).map_or("", String::as_str))
    }

    /// The network's clinical input for one patient, in the order of `inputs`.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the patient or a column is missing, [`crate::Kind::Malformed`]
    /// naming patient, column and cell when a cell is empty or cannot be read.
    pub fn vector(&self, patient: &str, inputs: &[Clinical]) -> Result<Vec<f32>> {
        inputs
            .iter()
            .map(|input| {
                let (Clinical::Number { column, .. } | Clinical::Flag { column, .. }) = input;
                value(input, self.cell(patient, column)?).map_err(|e| {
                    e.context(format!("{}: patient {patient:?}: column {column:?}", self.file))
                })
            })
            .collect()
    }
}

/// One cell as the network sees it.
fn value(input: &Clinical, cell: &str) -> Result<f32> {
    match input {
        _ if cell.is_empty() => Err(Error::malformed("the cell is empty")),
        Clinical::Number { mean, sd, .. } => match cell.parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(((x - mean) / sd) as f32),
            _ => Err(Error::malformed(format!("{cell:?} is not a number"))),
        },
        Clinical::Flag { equals, .. } if cell == equals => Ok(1.0),
        Clinical::Flag { otherwise, .. } if otherwise.iter().any(|o| o == cell) => Ok(0.0),
        Clinical::Flag { equals, otherwise, .. } => Err(Error::malformed(format!(
            "{cell:?} is neither {equals:?} nor one of {otherwise:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Vec<Clinical> {
        vec![
            Clinical::Number { column: "Age(years)".into(), mean: 57.836508, sd: 12.445064 },
            Clinical::Flag {
                column: "ER".into(),
                equals: "Negative".into(),
                otherwise: vec!["Positive".into()],
            },
        ]
    }

    const TABLE: &str = "\u{feff}Patient ID,ER,Age(years)\n1,Positive,70\n2,Negative, 45 \n\
                         3,,50\n4,Positive,old\n5,negative,50\n6,Positive,NaN\n";

    #[test]
    fn cells_are_standardised_in_network_order() {
        let table = Table::parse(TABLE.as_bytes(), None, "t.csv").unwrap();
        assert_eq!(
            table.vector("1", &inputs()).unwrap(),
            [((70.0 - 57.836508) / 12.445064) as f32, 0.0]
        );
        assert_eq!(table.vector("2", &inputs()).unwrap()[1], 1.0);
    }

    #[test]
    fn a_missing_or_unreadable_cell_names_patient_and_column() {
        let table = Table::parse(TABLE.as_bytes(), Some("Patient ID"), "t.csv").unwrap();
        for (patient, words) in [
            ("3", ["patient \"3\"", "\"ER\"", "empty"]),
            ("4", ["patient \"4\"", "\"Age(years)\"", "\"old\" is not a number"]),
            ("5", ["patient \"5\"", "\"ER\"", "\"negative\" is neither"]),
            ("6", ["patient \"6\"", "\"Age(years)\"", "\"NaN\""]),
            ("7", ["t.csv", "no patient", "\"7\""]),
        ] {
            let error = table.vector(patient, &inputs()).unwrap_err().to_string();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        }
        assert!(Table::parse(b"id\n1\n1\n", None, "t").is_err());
        assert!(Table::parse(b"id\n1\n", Some("x"), "t").is_err());
    }
}

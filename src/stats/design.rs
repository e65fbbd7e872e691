//! Design matrices from named columns: numbers as they are, categories as indicator columns against
//! their first level (treatment contrasts).

use super::finite;
use crate::error::{Context, Error, Result};

/// One column of a table, (N,).
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Numbers.
    Numeric(Vec<f64>),
    /// Categories.
    Factor {
        /// Level names; the first is the reference.
        levels: Vec<String>,
        /// Level of each row.
        codes: Vec<usize>,
    },
}

impl Column {
    /// Categories from text, levels in sorted order (numbers by value).
    pub fn factor(values: &[String]) -> Self {
        let mut levels = values.to_vec();
        levels.sort_by(|a, b| match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a.total_cmp(&b),
            _ => a.cmp(b),
        });
        levels.dedup();
        Self::factor_with(values, levels).unwrap_or(Column::Numeric(Vec::new()))
    }

    /// Categories from text with given levels, the first the reference.
    ///
    /// # Errors
    /// A value that is no level, named by row.
    pub fn factor_with(values: &[String], levels: Vec<String>) -> Result<Self> {
        let code = |(row, value): (usize, &String)| {
            levels.iter().position(|l| l == value).ok_or_else(|| {
                Error::malformed(format!("row {}: `{value}` is none of {levels:?}", row + 1))
            })
        };
        let codes = values.iter().enumerate().map(code).collect::<Result<_>>()?;
        Ok(Column::Factor { levels, codes })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Column::Numeric(v) => v.len(),
            Column::Factor { codes, .. } => codes.len(),
        }
    }
}

/// A design matrix without intercept.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// Names of the P columns: `age`, or `grade=3` for an indicator.
    pub names: Vec<String>,
    /// Names of the terms the columns come from.
    pub terms: Vec<String>,
    /// Which term each column belongs to, (P,).
    pub term_of: Vec<usize>,
    /// Row-major (N, P).
    pub x: Vec<f64>,
    rows: usize,
}

impl Design {
    /// The matrix of `columns`, in order.
    ///
    /// # Errors
    /// Columns of different length, a number that is not finite (named by row), or a column without
    /// variation.
    pub fn new(columns: &[(&str, &Column)]) -> Result<Self> {
        let rows = columns.first().map_or(0, |(_, c)| c.rows());
        let mut named: Vec<(String, usize, Vec<f64>)> = Vec::new();
        for (term, (name, column)) in columns.iter().enumerate() {
            super::same_length((name, column.rows()), (columns[0].0, rows))?;
            match column {
                Column::Numeric(values) => {
                    finite(name, values)?;
                    named.push((name.to_string(), term, values.clone()));
                }
                Column::Factor { levels, codes } => {
                    for (code, level) in levels.iter().enumerate().skip(1) {
                        let indicator = |c: &usize| f64::from(u8::from(*c == code));
                        let values = codes.iter().map(indicator).collect();
                        named.push((format!("{name}={level}"), term, values));
                    }
                }
            }
        }
        for (name, _, values) in &named {
            if values.windows(2).all(|w| w[0] == w[1]) {
                return Err(Error::malformed(format!("column {name} is the same in every row")));
            }
        }
        Ok(Design {
            x: (0..rows).flat_map(|i| named.iter().map(move |(_, _, v)| v[i])).collect(),
            terms: columns.iter().map(|(name, _)| name.to_string()).collect(),
            term_of: named.iter().map(|(_, term, _)| *term).collect(),
            names: named.into_iter().map(|(name, _, _)| name).collect(),
            rows,
        })
    }

    /// One numeric column.
    ///
    /// # Errors
    /// As [`Design::new`].
    pub fn single(name: &str, values: &[f64]) -> Result<Self> {
        Self::new(&[(name, &Column::Numeric(values.to_vec()))]).context(|| name.to_string())
    }

    /// A design of `rows` rows and no column.
    pub fn empty(rows: usize) -> Self {
        Design { names: vec![], terms: vec![], term_of: vec![], x: vec![], rows }
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// P.
    pub fn columns(&self) -> usize {
        self.names.len()
    }

    /// Row `i`, (P,).
    pub fn row(&self, i: usize) -> &[f64] {
        let p = self.columns();
        &self.x[i * p..(i + 1) * p]
    }

    /// Column `j`, (N,).
    pub fn column(&self, j: usize) -> Vec<f64> {
        (0..self.rows).map(|i| self.row(i)[j]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_become_indicators() {
        let text: Vec<String> = ["10", "9", "10", "2"].map(String::from).to_vec();
        let age = Column::Numeric(vec![1.0, 2.0, 3.0, 4.0]);
        let d = Design::new(&[("age", &age), ("grade", &Column::factor(&text))]).unwrap();
        assert_eq!(d.names, ["age", "grade=9", "grade=10"]);
        assert_eq!(d.term_of, [0, 1, 1]);
        assert_eq!(d.row(1), [2.0, 1.0, 0.0]);
        assert_eq!(d.column(2), [1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn bad_columns_are_named() {
        let error = Design::single("age", &[1.0, f64::NAN]).unwrap_err().to_string();
        assert!(error.contains("row 2: age is NaN"), "{error}");
        let error = Design::single("age", &[1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("age is the same"), "{error}");
    }
}

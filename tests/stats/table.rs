//! CSV tables and the few R formulas that oracle files use.

use histokern::stats::design::{Column, Design};
use std::path::Path;

pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// One term of a formula's right side.
#[derive(Clone, Debug)]
pub struct TermSpec {
    pub column: String,
    levels: Option<Vec<String>>,
    factor: bool,
    pub strata: bool,
}

/// `response ~ terms`; a survival response has a time and an event.
pub struct Formula {
    pub response: Vec<String>,
    /// The value of the event column that means an event, when it is not 1 or TRUE.
    event_value: Option<String>,
    pub terms: Vec<TermSpec>,
}

fn missing(cell: &str) -> bool {
    cell.is_empty() || cell == "NA" || cell == "NaN"
}

/// Splits at `separator` outside of brackets and quotes.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut out, mut depth, mut quoted) = (vec![String::new()], 0, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if c == separator && depth == 0 && !quoted {
            out.push(String::new());
        } else {
            out.last_mut().unwrap().push(c);
        }
    }
    out.into_iter().map(|s| s.trim().to_string()).collect()
}

/// `name(inner)` -> inner.
fn call<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')
}

impl Formula {
    pub fn parse(text: &str) -> Formula {
        let (left, right) = text.split_once('~').expect("a formula has a tilde");
        let left = left.trim();
        let mut event_value = None;
        let response = match call(left, "Surv") {
            None => vec![left.to_string()],
            Some(inner) => {
                let parts = split(inner, ',');
                let event = match parts[1].split_once("==") {
                    None => parts[1].clone(),
                    Some((name, value)) => {
                        event_value = Some(value.trim().to_string());
                        name.trim().to_string()
                    }
                };
                vec![parts[0].clone(), event]
            }
        };
        let terms = split(right, '+').iter().filter(|t| *t != "1").map(|t| term(t)).collect();
        Formula { response, event_value, terms }
    }
}

fn term(text: &str) -> TermSpec {
    let plain = |column: &str| TermSpec {
        column: column.into(),
        levels: None,
        factor: false,
        strata: false,
    };
    if let Some(inner) = call(text, "strata") {
        return TermSpec { strata: true, ..plain(inner) };
    }
    let Some(inner) = call(text, "factor") else {
        return plain(text);
    };
    let parts = split(inner, ',');
    let levels = parts.get(1).map(|p| {
        let list = p.split_once('=').expect("levels =").1.trim();
        let names = split(call(list, "c").expect("levels are c(...)"), ',');
        names.iter().map(|n| n.trim_matches('"').to_string()).collect()
    });
    TermSpec { factor: true, levels, ..plain(&parts[0]) }
}

impl Table {
    pub fn read(path: &Path) -> Table {
        let mut reader =
            csv::Reader::from_path(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let names = reader.headers().unwrap().iter().map(String::from).collect();
        let rows = reader
            .records()
            .map(|r| r.unwrap().iter().map(|c| c.trim().to_string()).collect())
            .collect();
        Table { names, rows }
    }

    fn index(&self, name: &str) -> usize {
        let found = self.names.iter().position(|n| n == name);
        found.unwrap_or_else(|| panic!("no column {name} in {:?}", self.names))
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Only the rows in which none of `columns` is missing.
    pub fn complete(mut self, columns: &[&str]) -> Table {
        let keep: Vec<usize> = columns.iter().map(|c| self.index(c)).collect();
        self.rows.retain(|row| keep.iter().all(|&c| !missing(&row[c])));
        self
    }

    pub fn for_formula(self, formula: &Formula) -> Table {
        let names = formula.response.iter().chain(formula.terms.iter().map(|t| &t.column));
        let names: Vec<String> = names.cloned().collect();
        self.complete(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn text(&self, name: &str) -> Vec<String> {
        let c = self.index(name);
        self.rows.iter().map(|r| r[c].clone()).collect()
    }

    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let text = self.text(name).into_iter();
        text.map(|t| t.parse().unwrap_or_else(|_| panic!("{name}: `{t}`"))).collect()
    }

    pub fn labels(&self, name: &str) -> Vec<bool> {
        let text = self.text(name).into_iter();
        text.map(|t| t == "TRUE" || t.parse::<f64>().is_ok_and(|v| v == 1.0)).collect()
    }

    pub fn survival(&self, formula: &Formula) -> (Vec<f64>, Vec<bool>) {
        let event = &formula.response[1];
        let events = match &formula.event_value {
            None => self.labels(event),
            Some(value) => self.text(event).iter().map(|t| t == value).collect(),
        };
        (self.numbers(&formula.response[0]), events)
    }

    /// Level names and the code of each row, levels as R sorts them.
    pub fn groups(&self, name: &str) -> (Vec<String>, Vec<usize>) {
        match Column::factor(&self.text(name)) {
            Column::Factor { levels, codes } => (levels, codes),
            Column::Numeric(_) => unreachable!(),
        }
    }

    fn column(&self, term: &TermSpec) -> Column {
        let text = self.text(&term.column);
        if let Some(levels) = &term.levels {
            return Column::factor_with(&text, levels.clone()).unwrap();
        }
        if term.factor || text.iter().any(|t| t.parse::<f64>().is_err()) {
            return Column::factor(&text);
        }
        Column::Numeric(self.numbers(&term.column))
    }

    pub fn design(&self, formula: &Formula) -> histokern::Result<Design> {
        let terms: Vec<&TermSpec> = formula.terms.iter().filter(|t| !t.strata).collect();
        let columns: Vec<Column> = terms.iter().map(|t| self.column(t)).collect();
        let named: Vec<(&str, &Column)> =
            terms.iter().map(|t| t.column.as_str()).zip(&columns).collect();
        Design::new(&named)
    }

    pub fn strata(&self, formula: &Formula) -> Option<Vec<usize>> {
        let term = formula.terms.iter().find(|t| t.strata)?;
        Some(self.groups(&term.column).1)
    }
}

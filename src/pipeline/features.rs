//! The features of a slide `[N, D]`: on the host, or on the machine whose encoder made them, where the
//! heads read them. The flow and the bits are the same; who wants the numbers asks for them.

use crate::backend::{Input, Kept};
use crate::error::Result;
use std::borrow::Cow;
use std::sync::Arc;

/// Features of tiles, a row each.
pub struct Features {
    rows: usize,
    width: usize,
    place: Place,
}

enum Place {
    Host(Vec<f32>),
    Machine(Arc<dyn Kept>),
}

impl Features {
    /// Features on the host: as many rows of `width` numbers as there are.
    pub fn host(width: usize, numbers: Vec<f32>) -> Features {
        Features { rows: numbers.len() / width.max(1), width, place: Place::Host(numbers) }
    }

    /// Features that stay on a machine: no row yet, and never more than it has room for.
    pub fn kept(on: Arc<dyn Kept>) -> Features {
        Features { rows: 0, width: on.width(), place: Place::Machine(on) }
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether they are on a machine.
    pub fn are_kept(&self) -> bool {
        matches!(self.place, Place::Machine(_))
    }

    /// Adds rows that a batch is to fill: where on the machine, if they are there.
    pub fn grow(&mut self, rows: usize) -> Option<(Arc<dyn Kept>, usize)> {
        let first = self.rows;
        self.rows += rows;
        match &mut self.place {
            Place::Host(numbers) => {
                numbers.resize(self.rows * self.width, 0.0);
                None
            }
            Place::Machine(on) => Some((Arc::clone(on), first)),
        }
    }

    /// Rows that a batch is to fill on the host, if they are there.
    pub fn rows_mut(&mut self, first: usize, rows: usize) -> Option<&mut [f32]> {
        match &mut self.place {
            Place::Host(numbers) => Some(&mut numbers[first * self.width..][..rows * self.width]),
            Place::Machine(_) => None,
        }
    }

    /// All numbers, copied from the machine if they are there.
    ///
    /// # Errors
    /// As [`Kept::read`].
    pub fn read(&self) -> Result<Cow<'_, [f32]>> {
        match &self.place {
            Place::Host(numbers) => Ok(Cow::Borrowed(numbers)),
            Place::Machine(on) => {
                let all: Vec<usize> = (0..self.rows).collect();
                let mut numbers = vec![0.0; self.rows * self.width];
                on.read(&all, &mut numbers)?;
                Ok(Cow::Owned(numbers))
            }
        }
    }

    /// Brings them to the host and gives the machine its memory back.
    ///
    /// # Errors
    /// As [`Kept::read`].
    pub fn bring(&mut self) -> Result<()> {
        if self.are_kept() {
            self.place = Place::Host(self.read()?.into_owned());
        }
        Ok(())
    }

    /// The columns from `first` on of features on the host.
    pub fn columns(&self, first: usize, width: usize) -> Option<Features> {
        let Place::Host(numbers) = &self.place else { return None };
        let rows = numbers.chunks_exact(self.width).flat_map(|row| &row[first..][..width]);
        Some(Features::host(width, rows.copied().collect()))
    }

    /// Rows of a bag as heads read them.
    pub fn bag<'a>(&'a self, rows: &'a [usize]) -> Rows<'a> {
        match &self.place {
            Place::Machine(on) => Rows::Machine(&**on, Cow::Borrowed(rows)),
            // The usual bag is all tiles in order; only others need a copy.
            Place::Host(all) if rows.iter().copied().eq(0..self.rows) => Rows::Host(all.into()),
            Place::Host(all) => Rows::Host(gather(all, self.width, rows).into()),
        }
    }
}

/// Some features in some order.
pub enum Rows<'a> {
    /// `[rows, D]`.
    Host(Cow<'a, [f32]>),
    /// Rows of those on a machine.
    Machine(&'a dyn Kept, Cow<'a, [usize]>),
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Rows::Host(Cow::Borrowed(numbers))
    }
}

impl<'a> Rows<'a> {
    /// Numbers in all of them.
    pub fn numbers(&self) -> usize {
        match self {
            Rows::Host(numbers) => numbers.len(),
            Rows::Machine(on, rows) => rows.len() * on.width(),
        }
    }

    /// As an input of a network.
    pub fn input(&self) -> Input<'_> {
        match self {
            Rows::Host(numbers) => Input::Values(numbers),
            Rows::Machine(on, rows) => Input::Kept(*on, rows),
        }
    }

    /// Some of these rows, of `width` numbers each.
    pub fn select(&self, width: usize, rows: &[usize]) -> Rows<'a> {
        match self {
            Rows::Host(numbers) => Rows::Host(gather(numbers, width, rows).into()),
            Rows::Machine(on, all) => {
                Rows::Machine(*on, rows.iter().map(|&row| all[row]).collect())
            }
        }
    }
}

fn gather(all: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &all[row * width..][..width]).copied().collect()
}

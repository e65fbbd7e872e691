//! A head readied on a backend: one bag in, logits and the scores of its tiles out.

use super::features::Rows;
use crate::backend::{Backend, Input, Session};
use crate::error::{Error, Result};
use crate::heads::{self, Extremes, Head, Prediction};
use std::sync::Arc;

/// A head and its sessions.
pub struct HeadSession {
    head: Head,
    session: Box<dyn Session>,
    second: Option<(Extremes, Box<dyn Session>)>,
}

/// What one head says of one bag.
#[derive(Clone, Debug)]
pub struct BagPrediction {
    /// Logits, probabilities or value.
    pub prediction: Prediction,
    /// Scores of the tiles, `[N, branches]`.
    pub scores: Vec<f32>,
}

impl HeadSession {
    /// Readies a head for bags of any size.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    pub fn new(head: Head, backend: &dyn Backend) -> Result<HeadSession> {
        let session = backend.prepare(head.graph.clone(), 1)?;
        let second = match &head.extremes {
            None => None,
            Some(extremes) => {
                let session = backend.prepare(Arc::clone(&extremes.graph), extremes.count)?;
                Some((extremes.clone(), session))
            }
        };
        Ok(HeadSession { head, session, second })
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes of host memory that a tile of a bag takes, its scores included.
    pub fn row_bytes(&self) -> usize {
        self.session.row_bytes() + self.head.branches * size_of::<f32>()
    }

    /// Gives back the memory that grows with the bag.
    pub fn release(&mut self) {
        self.session.release();
    }

    /// Runs the head on one bag of `[n, D]` features and its clinical values.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the features have another width or a clinical input is missing.
    pub fn run(
        &mut self,
        n: usize,
        features: &Rows<'_>,
        clinical: &[f32],
    ) -> Result<BagPrediction> {
        let head = &self.head;
        if features.numbers() != n * head.feature_dim {
            return Err(Error::usage(format!(
                "head {}: {} features for {n} tiles, needed {} each",
                head.name,
                features.numbers(),
                head.feature_dim
            )));
        }
        if clinical.len() != head.clinical {
            return Err(Error::usage(format!(
                "head {} needs {} clinical values, given {}: --clinical names their table",
                head.name,
                head.clinical,
                clinical.len()
            )));
        }
        let mut inputs = vec![features.input()];
        if head.clinical > 0 {
            inputs.push(Input::Values(clinical));
        }
        let mut logits = vec![0.0; head.outputs];
        let mut scores = vec![0.0; n * head.branches];
        self.session.reserve(n)?;
        self.session.run(n, &inputs, &mut [&mut logits, &mut scores])?;
        if let Some((extremes, session)) = &mut self.second
            && let Some(ends) = extremes.rows(&scores)
        {
            let [low, high] = ends.map(|rows| features.select(head.feature_dim, &rows));
            let inputs = [low.input(), high.input()];
            session.run(extremes.count, &inputs, &mut [&mut logits])?;
        }
        Ok(BagPrediction { prediction: heads::predict(head, &logits)?, scores })
    }
}

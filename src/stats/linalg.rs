//! Symmetric positive definite systems of a few unknowns: all that Newton's method needs.

/// A square symmetric matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Symmetric {
    pub n: usize,
    pub a: Vec<f64>,
}

impl Symmetric {
    pub fn zeros(n: usize) -> Self {
        Symmetric { n, a: vec![0.0; n * n] }
    }

    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.a[i * self.n + j]
    }

    /// Adds `w x x'`.
    pub fn add_outer(&mut self, w: f64, x: &[f64]) {
        for (row, &xi) in self.a.chunks_exact_mut(self.n).zip(x) {
            for (cell, &xj) in row.iter_mut().zip(x) {
                *cell += w * xi * xj;
            }
        }
    }

    /// The rows and columns `keep`, in that order.
    pub fn select(&self, keep: &[usize]) -> Self {
        let a = keep.iter().flat_map(|&i| keep.iter().map(move |&j| self.at(i, j))).collect();
        Symmetric { n: keep.len(), a }
    }

    /// `x' A y`.
    pub fn form(&self, x: &[f64], y: &[f64]) -> f64 {
        self.a
            .chunks_exact(self.n)
            .zip(x)
            .map(|(row, xi)| xi * row.iter().zip(y).map(|(a, yj)| a * yj).sum::<f64>())
            .sum()
    }

    /// Cholesky factor, or the first column that depends on those before it: its pivot has fallen
    /// below `1e-11` of its diagonal.
    pub fn cholesky(&self) -> Result<Cholesky, usize> {
        let n = self.n;
        let mut l = vec![0.0; n * n];
        for j in 0..n {
            let mut pivot = self.at(j, j);
            for k in 0..j {
                pivot -= l[j * n + k] * l[j * n + k];
            }
            if !pivot.is_finite() || pivot <= 1e-11 * self.at(j, j).abs() {
                return Err(j);
            }
            let root = pivot.sqrt();
            l[j * n + j] = root;
            for i in j + 1..n {
                let mut sum = self.at(i, j);
                for k in 0..j {
                    sum -= l[i * n + k] * l[j * n + k];
                }
                l[i * n + j] = sum / root;
            }
        }
        Ok(Cholesky { n, l })
    }
}

/// Lower triangular `L` with `A = L L'`.
pub(crate) struct Cholesky {
    n: usize,
    l: Vec<f64>,
}

impl Cholesky {
    /// Solves `A x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let (n, l) = (self.n, &self.l);
        let mut x = b.to_vec();
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| l[i * n + k] * x[k]).sum();
            x[i] = (x[i] - sum) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
            x[i] = (x[i] - sum) / l[i * n + i];
        }
        x
    }

    /// Inverse of `A`.
    pub fn inverse(&self) -> Symmetric {
        let mut out = Symmetric::zeros(self.n);
        for j in 0..self.n {
            let mut unit = vec![0.0; self.n];
            unit[j] = 1.0;
            for (i, v) in self.solve(&unit).into_iter().enumerate() {
                out.a[i * self.n + j] = v;
            }
        }
        out
    }

    /// Logarithm of the determinant of `A`.
    pub fn log_det(&self) -> f64 {
        (0..self.n).map(|i| 2.0 * self.l[i * self.n + i].ln()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_and_inverts() {
        let a = Symmetric { n: 3, a: vec![4.0, 2.0, 0.6, 2.0, 3.0, 0.4, 0.6, 0.4, 2.0] };
        let factor = a.cholesky().ok().unwrap();
        let x = factor.solve(&[1.0, 2.0, 3.0]);
        for (row, b) in a.a.chunks(3).zip([1.0, 2.0, 3.0]) {
            let got: f64 = row.iter().zip(&x).map(|(a, x)| a * x).sum();
            assert!((got - b).abs() < 1e-14);
        }
        let inverse = factor.inverse();
        for (i, row) in a.a.chunks(3).enumerate() {
            for j in 0..3 {
                let got: f64 = (0..3).map(|k| row[k] * inverse.at(k, j)).sum();
                assert!((got - f64::from(u8::from(i == j))).abs() < 1e-14);
            }
        }
        assert!((factor.log_det() - 15.24f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn names_the_dependent_column() {
        let mut a = Symmetric::zeros(3);
        for row in [[1.0, 2.0, 3.0], [1.0, 5.0, 6.0], [1.0, -1.0, 0.0]] {
            a.add_outer(1.0, &row);
        }
        assert_eq!(a.cholesky().err(), Some(2));
    }
}

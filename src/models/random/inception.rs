//! Inception V3 and GoogLeNet by torchvision's keys.

use super::Made;

/// `<part>`, filters as published, kernel.
type Part = (&'static str, usize, [usize; 2]);

const ONE: [usize; 2] = [1, 1];
const THREE: [usize; 2] = [3, 3];
const FIVE: [usize; 2] = [5, 5];
const ROW: [usize; 2] = [1, 7];
const COLUMN: [usize; 2] = [7, 1];

impl Made {
    /// `<name>.conv` and `<name>.bn`; returns the filters.
    fn basic(&mut self, name: &str, filters: usize, c: usize, kernel: [usize; 2]) -> usize {
        let k = self.scaled(filters);
        self.conv(&format!("{name}.conv"), [k, c], kernel);
        self.norm(&format!("{name}.bn"), k, 1.0);
        k
    }

    /// Convolutions one after the other; returns the filters of the last, `c` for none.
    fn chain(&mut self, module: &str, c: usize, parts: &[Part]) -> usize {
        parts.iter().fold(c, |c, &(part, filters, kernel)| {
            self.basic(&format!("{module}.{part}"), filters, c, kernel)
        })
    }

    /// Chains side by side; returns the sum of what they put out.
    fn module(&mut self, name: &str, c: usize, branches: &[&[Part]]) -> usize {
        branches.iter().map(|parts| self.chain(name, c, parts)).sum()
    }

    pub fn inception_v3(&mut self) {
        let mut c = 3;
        for (name, filters, kernel) in [
            ("Conv2d_1a_3x3", 32, THREE),
            ("Conv2d_2a_3x3", 32, THREE),
            ("Conv2d_2b_3x3", 64, THREE),
            ("Conv2d_3b_1x1", 80, ONE),
            ("Conv2d_4a_3x3", 192, THREE),
        ] {
            c = self.basic(name, filters, c, kernel);
        }
        for (name, pooled) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
            c = self.inception_a(name, c, pooled);
        }
        c += self.module(
            "Mixed_6a",
            c,
            &[
                &[("branch3x3", 384, THREE)],
                &[
                    ("branch3x3dbl_1", 64, ONE),
                    ("branch3x3dbl_2", 96, THREE),
                    ("branch3x3dbl_3", 96, THREE),
                ],
            ],
        );
        for (name, inner) in
            [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)]
        {
            c = self.inception_c(name, c, inner);
        }
        c += self.module(
            "Mixed_7a",
            c,
            &[
                &[("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE)],
                &[
                    ("branch7x7x3_1", 192, ONE),
                    ("branch7x7x3_2", 192, ROW),
                    ("branch7x7x3_3", 192, COLUMN),
                    ("branch7x7x3_4", 192, THREE),
                ],
            ],
        );
        for name in ["Mixed_7b", "Mixed_7c"] {
            c = self.inception_e(name, c);
        }
    }

    fn inception_a(&mut self, name: &str, c: usize, pooled: usize) -> usize {
        self.module(
            name,
            c,
            &[
                &[("branch1x1", 64, ONE)],
                &[("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)],
                &[
                    ("branch3x3dbl_1", 64, ONE),
                    ("branch3x3dbl_2", 96, THREE),
                    ("branch3x3dbl_3", 96, THREE),
                ],
                &[("branch_pool", pooled, ONE)],
            ],
        )
    }

    fn inception_c(&mut self, name: &str, c: usize, inner: usize) -> usize {
        self.module(
            name,
            c,
            &[
                &[("branch1x1", 192, ONE)],
                &[
                    ("branch7x7_1", inner, ONE),
                    ("branch7x7_2", inner, ROW),
                    ("branch7x7_3", 192, COLUMN),
                ],
                &[
                    ("branch7x7dbl_1", inner, ONE),
                    ("branch7x7dbl_2", inner, COLUMN),
                    ("branch7x7dbl_3", inner, ROW),
                    ("branch7x7dbl_4", inner, COLUMN),
                    ("branch7x7dbl_5", 192, ROW),
                ],
                &[("branch_pool", 192, ONE)],
            ],
        )
    }

    fn inception_e(&mut self, name: &str, c: usize) -> usize {
        let outer =
            self.module(name, c, &[&[("branch1x1", 320, ONE)], &[("branch_pool", 192, ONE)]]);
        let single = self.chain(name, c, &[("branch3x3_1", 384, ONE)]);
        let double =
            self.chain(name, c, &[("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE)]);
        let (row, column) = ([1, 3], [3, 1]);
        let split = [
            (single, "branch3x3_2a", row),
            (single, "branch3x3_2b", column),
            (double, "branch3x3dbl_3a", row),
            (double, "branch3x3dbl_3b", column),
        ];
        let inner: usize = split
            .iter()
            .map(|&(c, part, kernel)| self.chain(name, c, &[(part, 384, kernel)]))
            .sum();
        outer + inner
    }

    pub fn googlenet(&mut self) {
        let mut c = self.basic("conv1", 64, 3, [7, 7]);
        c = self.basic("conv2", 64, c, ONE);
        c = self.basic("conv3", 192, c, THREE);
        // Filters of the six convolutions of a module (Szegedy et al. 2015, table 1).
        for (name, [a, b1, b2, c1, c2, d]) in [
            ("inception3a", [64, 96, 128, 16, 32, 32]),
            ("inception3b", [128, 128, 192, 32, 96, 64]),
            ("inception4a", [192, 96, 208, 16, 48, 64]),
            ("inception4b", [160, 112, 224, 24, 64, 64]),
            ("inception4c", [128, 128, 256, 24, 64, 64]),
            ("inception4d", [112, 144, 288, 32, 64, 64]),
            ("inception4e", [256, 160, 320, 32, 128, 128]),
            ("inception5a", [256, 160, 320, 32, 128, 128]),
            ("inception5b", [384, 192, 384, 48, 128, 128]),
        ] {
            c = self.module(
                name,
                c,
                &[
                    &[("branch1", a, ONE)],
                    &[("branch2.0", b1, ONE), ("branch2.1", b2, THREE)],
                    &[("branch3.0", c1, ONE), ("branch3.1", c2, THREE)],
                    &[("branch4.1", d, ONE)],
                ],
            );
        }
    }
}

//! VGG, ResNet, AlexNet and DenseNet by torchvision's keys.

use super::Made;

/// A square kernel.
fn square(side: usize) -> [usize; 2] {
    [side; 2]
}

impl Made {
    pub fn vgg(&mut self, convs: &[usize; 5], bn: bool) {
        let (mut c, mut index) = (3, 0);
        for (&count, k) in convs.iter().zip([1, 2, 4, 8, 8].map(|times| times * self.width)) {
            for _ in 0..count {
                let name = format!("features.{index}");
                self.conv(&name, [k, c], square(3));
                self.bias(&name, k);
                if bn {
                    self.norm(&format!("features.{}", index + 1), k, 1.0);
                }
                index += if bn { 3 } else { 2 };
                c = k;
            }
            index += 1;
        }
    }

    pub fn alexnet(&mut self) {
        let mut c = 3;
        for (index, k, kernel) in [(0, 64, 11), (3, 192, 5), (6, 384, 3), (8, 256, 3), (10, 256, 3)]
        {
            let (name, k) = (format!("features.{index}"), self.scaled(k));
            self.conv(&name, [k, c], square(kernel));
            self.bias(&name, k);
            c = k;
        }
    }

    /// Returns the channels of the stem and of each stage.
    pub fn resnet(&mut self, prefix: &str, blocks: &[usize; 4], bottleneck: bool) -> [usize; 5] {
        let width = self.width;
        self.conv(&format!("{prefix}conv1"), [width, 3], square(7));
        self.norm(&format!("{prefix}bn1"), width, 1.0);
        let (mut c, mut outputs) = (width, [width; 5]);
        for (stage, &count) in blocks.iter().enumerate() {
            let middle = width << stage;
            let out = if bottleneck { 4 * middle } else { middle };
            for block in 0..count {
                let name = format!("{prefix}layer{}.{block}", stage + 1);
                if block == 0 && (stage > 0 || c != out) {
                    self.conv(&format!("{name}.downsample.0"), [out, c], square(1));
                    self.norm(&format!("{name}.downsample.1"), out, 1.0);
                }
                let shapes: &[[usize; 3]] = if bottleneck {
                    &[[middle, c, 1], [middle, middle, 3], [out, middle, 1]]
                } else {
                    &[[middle, c, 3], [out, middle, 3]]
                };
                for (i, &[k, c, kernel]) in shapes.iter().enumerate() {
                    // A small last scale keeps the sum over many blocks within FP16.
                    let scale = if i + 1 == shapes.len() { 0.25 } else { 1.0 };
                    self.conv(&format!("{name}.conv{}", i + 1), [k, c], square(kernel));
                    self.norm(&format!("{name}.bn{}", i + 1), k, scale);
                }
                c = out;
            }
            outputs[stage + 1] = c;
        }
        outputs
    }

    /// Returns the channels of the stem, of each transition before its convolution, and at the end.
    pub fn densenet(&mut self, prefix: &str, layers: &[usize; 4], growth: usize) -> [usize; 5] {
        let features = format!("{prefix}features");
        let growth = self.scaled(growth);
        let mut c = 2 * growth;
        self.conv(&format!("{features}.conv0"), [c, 3], square(7));
        self.norm(&format!("{features}.norm0"), c, 1.0);
        let mut outputs = [c; 5];
        for (i, &count) in layers.iter().enumerate() {
            for j in 1..=count {
                let name = format!("{features}.denseblock{}.denselayer{j}", i + 1);
                self.norm(&format!("{name}.norm1"), c, 1.0);
                self.conv(&format!("{name}.conv1"), [4 * growth, c], square(1));
                self.norm(&format!("{name}.norm2"), 4 * growth, 1.0);
                self.conv(&format!("{name}.conv2"), [growth, 4 * growth], square(3));
                c += growth;
            }
            outputs[i + 1] = c;
            if i + 1 == layers.len() {
                self.norm(&format!("{features}.norm5"), c, 1.0);
                break;
            }
            let name = format!("{features}.transition{}", i + 1);
            self.norm(&format!("{name}.norm"), c, 1.0);
            self.conv(&format!("{name}.conv"), [c / 2, c], square(1));
            c /= 2;
        }
        outputs
    }
}

//! Segmenters by the keys of their families.

use super::super::segmenters::{Layout as Kind, SegmenterFamily};
use super::super::{Layout, family};
use super::Made;
use crate::error::{Error, Result};

/// Filters of the five blocks of a decoder of segmentation_models_pytorch.
const DECODER: [usize; 5] = [256, 128, 64, 32, 16];
/// Filters of the pyramid of DeepLabV3.
const PYRAMID: usize = 256;

impl Made {
    /// Weights of a segmenter of one class.
    pub fn of_segmenter(family: &SegmenterFamily, width: usize, seed: u64) -> Result<Made> {
        let mut made = Made::new(width, seed);
        match family.layout {
            Kind::Unet => made.unet(),
            Kind::Nested => made.nested_unet(),
            Kind::SmpUnet(encoder) => made.smp_unet(encoder)?,
            Kind::SmpUnetPlusPlus(encoder) => made.smp_unet_plus_plus(encoder)?,
            Kind::SmpDeepLab(encoder) => {
                let c = made.pyramid("encoder.", encoder)?[4];
                made.deeplab(
                    c,
                    ["decoder.aspp", "decoder.conv", "decoder.bn"],
                    "segmentation_head.0",
                );
            }
            Kind::DeepLab(encoder) => {
                let c = made.pyramid("backbone.", encoder)?[4];
                made.deeplab(c, ["classifier.0", "classifier.1", "classifier.2"], "classifier.4");
            }
        }
        Ok(made)
    }

    /// A convolution and its norm.
    fn normed(&mut self, [conv, norm]: [&str; 2], [k, c]: [usize; 2], kernel: usize) {
        self.conv(conv, [k, c], [kernel; 2]);
        self.norm(norm, k, 1.0);
    }

    /// A convolution with a bias.
    fn biased(&mut self, name: &str, [k, c]: [usize; 2], kernel: usize) {
        self.conv(name, [k, c], [kernel; 2]);
        self.bias(name, k);
    }

    /// A transposed 2 x 2 convolution, `[C, K, 2, 2]`. Each result is the sum over C of one tap.
    fn doubling(&mut self, name: &str, [k, c]: [usize; 2]) {
        self.uniform_f16(name, vec![c, k, 2, 2], 2.0 / c as f32);
        self.bias(name, k);
    }

    fn double_conv(&mut self, name: &str, k: usize, c: usize) {
        self.normed([&format!("{name}.0"), &format!("{name}.1")], [k, c], 3);
        self.normed([&format!("{name}.3"), &format!("{name}.4")], [k, k], 3);
    }

    fn unet(&mut self) {
        let widths = [1, 2, 4, 8, 16].map(|times| times * self.width);
        self.double_conv("inc.double_conv", widths[0], 3);
        for i in 1..widths.len() {
            let name = format!("down{i}.maxpool_conv.1.double_conv");
            self.double_conv(&name, widths[i], widths[i - 1]);
        }
        for (i, &k) in (1..widths.len()).zip(widths[..4].iter().rev()) {
            self.doubling(&format!("up{i}.up"), [k, 2 * k]);
            self.double_conv(&format!("up{i}.conv.double_conv"), k, 2 * k);
        }
        self.biased("outc.conv", [1, widths[0]], 1);
    }

    fn nested_unet(&mut self) {
        let widths = [32, 64, 128, 256, 512].map(|k| self.scaled(k));
        for (i, &k) in widths.iter().enumerate() {
            for j in 0..widths.len() - i {
                let c = match (i, j) {
                    (0, 0) => 3,
                    (_, 0) => widths[i - 1],
                    // What comes from below, and the nodes before it.
                    _ => (1 + j) * k,
                };
                let name = format!("{}{}", i + 1, j + 1);
                if j > 0 {
                    self.doubling(&format!("up{name}"), [k, widths[i + 1]]);
                }
                self.biased(&format!("conv{name}_1"), [k, c], 3);
                self.biased(&format!("conv{name}_2"), [k, k], 3);
            }
        }
        for k in 1..widths.len() {
            self.biased(&format!("output_{k}"), [1, widths[0]], 1);
        }
    }

    /// The encoder of a segmenter; returns the channels of its five maps, the largest map first.
    fn pyramid(&mut self, prefix: &str, encoder: &str) -> Result<[usize; 5]> {
        match family(encoder)?.layout {
            Layout::ResNet { blocks, bottleneck } => Ok(self.resnet(prefix, &blocks, bottleneck)),
            Layout::DenseNet { layers, growth } => Ok(self.densenet(prefix, &layers, growth)),
            _ => Err(Error::usage(format!("{encoder} is no encoder of a segmenter"))),
        }
    }

    fn decoder_block(&mut self, name: &str, k: usize, c: usize) {
        let name = format!("decoder.blocks.{name}");
        self.normed([&format!("{name}.conv1.0"), &format!("{name}.conv1.1")], [k, c], 3);
        self.normed([&format!("{name}.conv2.0"), &format!("{name}.conv2.1")], [k, k], 3);
    }

    fn smp_unet(&mut self, encoder: &str) -> Result<()> {
        let [a, b, c, d, deepest] = self.pyramid("encoder.", encoder)?;
        let mut x = deepest;
        for (i, (k, skip)) in DECODER.into_iter().zip([d, c, b, a, 0]).enumerate() {
            let k = self.scaled(k);
            self.decoder_block(&i.to_string(), k, x + skip);
            x = k;
        }
        self.biased("segmentation_head.0", [1, x], 3);
        Ok(())
    }

    fn smp_unet_plus_plus(&mut self, encoder: &str) -> Result<()> {
        let mut maps = self.pyramid("encoder.", encoder)?;
        maps.reverse();
        let filters = DECODER.map(|k| self.scaled(k));
        // Node x_<d>_<l> puts out as many channels as the encoder's map it lies beside, the outermost
        // as the decoder's row says.
        let out = |d: usize, l: usize| if d == 0 { filters[l] } else { maps[l + 1] };
        for l in 0..4 {
            for d in 0..=l {
                let below = if d == l { maps[d] } else { out(d, l - 1) };
                let beside: usize = (d + 1..=l).map(|d| out(d, l)).sum();
                let c = below + beside + maps[l + 1];
                self.decoder_block(&format!("x_{d}_{l}"), out(d, l), c);
            }
        }
        self.decoder_block("x_0_4", filters[4], filters[3]);
        self.biased("segmentation_head.0", [1, filters[4]], 3);
        Ok(())
    }

    fn deeplab(&mut self, c: usize, [pyramid, conv, norm]: [&str; 3], head: &str) {
        let k = self.scaled(PYRAMID);
        for (i, kernel) in [1, 3, 3, 3].into_iter().enumerate() {
            let name = format!("{pyramid}.convs.{i}");
            self.normed([&format!("{name}.0"), &format!("{name}.1")], [k, c], kernel);
        }
        let mean = format!("{pyramid}.convs.4");
        self.normed([&format!("{mean}.1"), &format!("{mean}.2")], [k, c], 1);
        let project = format!("{pyramid}.project");
        self.normed([&format!("{project}.0"), &format!("{project}.1")], [k, 5 * k], 1);
        self.normed([conv, norm], [k, k], 3);
        self.biased(head, [1, k], 1);
    }
}

//! What Keras's Inception V3 calls the convolutions that torchvision gives names.
//!
//! Keras numbers its convolutions in the order in which its code makes them. That order is the one
//! in which torchvision lists the parts of each module, so the names below, in order, are those of
//! `conv2d_0` to `conv2d_93` and of the batch norms behind them.

const STEM: &[&str] =
    &["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"];
const DOUBLE_3X3: [&str; 3] = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"];
const A: &[&str] = &[
    "branch1x1",
    "branch5x5_1",
    "branch5x5_2",
    DOUBLE_3X3[0],
    DOUBLE_3X3[1],
    DOUBLE_3X3[2],
    "branch_pool",
];
const B: &[&str] = &["branch3x3", DOUBLE_3X3[0], DOUBLE_3X3[1], DOUBLE_3X3[2]];
const C: &[&str] = &[
    "branch1x1",
    "branch7x7_1",
    "branch7x7_2",
    "branch7x7_3",
    "branch7x7dbl_1",
    "branch7x7dbl_2",
    "branch7x7dbl_3",
    "branch7x7dbl_4",
    "branch7x7dbl_5",
    "branch_pool",
];
const D: &[&str] = &[
    "branch3x3_1",
    "branch3x3_2",
    "branch7x7x3_1",
    "branch7x7x3_2",
    "branch7x7x3_3",
    "branch7x7x3_4",
];
const E: &[&str] = &[
    "branch1x1",
    "branch3x3_1",
    "branch3x3_2a",
    "branch3x3_2b",
    "branch3x3dbl_1",
    "branch3x3dbl_2",
    "branch3x3dbl_3a",
    "branch3x3dbl_3b",
    "branch_pool",
];
const MODULES: &[(&str, &[&str])] = &[
    ("", STEM),
    ("Mixed_5b.", A),
    ("Mixed_5c.", A),
    ("Mixed_5d.", A),
    ("Mixed_6a.", B),
    ("Mixed_6b.", C),
    ("Mixed_6c.", C),
    ("Mixed_6d.", C),
    ("Mixed_6e.", C),
    ("Mixed_7a.", D),
    ("Mixed_7b.", E),
    ("Mixed_7c.", E),
];

/// torchvision's name of a tensor of `conv2d_<rank>` or `batch_normalization_<rank>`.
pub fn torchvision_name(key: &str) -> Option<String> {
    let (layer, part) = key.split_once('.')?;
    let (kind, rank) = layer.rsplit_once('_')?;
    let kind = match kind {
        "conv2d" => "conv",
        "batch_normalization" => "bn",
        _ => return None,
    };
    let mut names = MODULES.iter().flat_map(|(m, parts)| parts.iter().map(move |p| (m, p)));
    let (module, name) = names.nth(rank.parse().ok()?)?;
    Some(format!("{module}{name}.{kind}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_four_convolutions_have_names() {
        let name = |key: &str| torchvision_name(key);
        assert_eq!(name("conv2d_0.weight").as_deref(), Some("Conv2d_1a_3x3.conv.weight"));
        assert_eq!(
            name("batch_normalization_93.bias").as_deref(),
            Some("Mixed_7c.branch_pool.bn.bias")
        );
        assert_eq!(name("conv2d_94.weight"), None);
        assert_eq!(name("dense_0.weight"), None);
    }
}

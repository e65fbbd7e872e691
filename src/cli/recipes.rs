//! The recipes of `weights/`, built into the program: what `import --recipe` names.

use crate::error::{Error, Result};

macro_rules! row {
    ($name:literal) => {
        ($name, include_str!(concat!("../../weights/", $name, "/recipe.toml")))
    };
}

/// Name and text of every recipe whose weights come from elsewhere.
pub const RECIPES: &[(&str, &str)] = &[
    row!("balnmp-dl-cnb"),
    row!("balnmp-dl-cnb-c"),
    row!("balnmp-dl-cnb-1"),
    row!("balnmp-dl-cnb-2"),
    row!("balnmp-dl-cnb-3"),
    row!("balnmp-dl-cnb-4"),
    row!("balnmp-dl-cnb-c-1"),
    row!("balnmp-dl-cnb-c-2"),
    row!("balnmp-dl-cnb-c-3"),
    row!("balnmp-dl-cnb-c-4"),
    row!("ekholm-proliferation"),
    row!("ekholm-mki67"),
    row!("histcode-diagnosis"),
    row!("histcode-gene"),
    row!("us-sln"),
    row!("uni"),
    row!("uni2-h"),
    row!("conch"),
    row!("conch-v1.5"),
    row!("virchow"),
    row!("virchow2"),
    row!("prov-gigapath"),
    row!("h-optimus-0"),
    row!("h-optimus-1"),
    row!("h0-mini"),
    row!("phikon"),
    row!("phikon-v2"),
    row!("hibou-b"),
    row!("hibou-l"),
    row!("midnight"),
    row!("kaiko-vits8"),
    row!("kaiko-vits16"),
    row!("kaiko-vitb8"),
    row!("kaiko-vitb16"),
    row!("kaiko-vitl14"),
    row!("lunit-vits8"),
    row!("lunit-vits16"),
];

/// The text of a recipe by its name.
///
/// # Errors
/// [`crate::Kind::Usage`] listing the names there are.
pub fn recipe(name: &str) -> Result<&'static str> {
    RECIPES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|(n, _)| *n).collect();
        Error::usage(format!("no recipe {name:?}; there are {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn every_recipe_is_valid_and_named_after_its_folder() {
        for (name, text) in RECIPES {
            assert_eq!(Recipe::parse(text).unwrap().name, *name);
        }
    }
}

//! A model for the next version of an image, before its first launch.
//!
//! States are (layer, path, bucket). Where the next version has the path in the same layer, the state is right as it
//! is; where not, nothing matches it and it is not fetched; traces of the new version let it decay. So a model carries
//! over by itself. What is left to do is a file that was *renamed*: its content is known by digest under another path.
//! [`carry_over`] moves states given who became who; finding that out needs the recipes of both versions, and is the
//! caller's.

use layer_format::model::{Model, State};
use layer_format::{Digest, LayerPath};

use crate::draft::Draft;
use crate::params::Params;
use crate::prune::prune;

/// The model for `image`, the next version. `moved` says where the content of a layer's path is now, if elsewhere;
/// states of two paths that become one add up.
pub fn carry_over(model: &Model, image: Digest, params: &Params, mut moved: impl FnMut(u8, &LayerPath) -> Option<(u8, LayerPath)>) -> Model {
    let mut renamed = Model { image: Some(image), paths: Vec::new(), states: Vec::new(), ..model.clone() };
    for state in &model.states {
        let path = model.paths.get(state.path as usize);
        let place = path.and_then(|path| moved(state.layer, path));
        let (layer, path) = place.unwrap_or_else(|| (state.layer, path.cloned().unwrap_or_default()));
        renamed.states.push(State { layer, path: renamed.paths.len() as u32, touch: state.touch });
        renamed.paths.push(path);
    }
    // The draft takes states in any order, and adds up those that are now the same.
    prune(&mut Draft::new(&renamed), &params.bounded(), 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{check, walk};
    use crate::{launch_list, learn};

    #[test]
    fn paths_that_stay_are_predicted_in_the_next_version_and_renamed_ones_move() {
        let params = Params::default();
        let mut model = Model::default();
        learn(&mut model, &walk("app", &["bin/app", "lib/app-1.0.so", "etc/app"]), &params);
        let next = Digest::of(b"version 2");
        let moved = |_: u8, path: &LayerPath| (path.name() == b"app-1.0.so").then(|| (1, LayerPath::new("lib/app-1.1.so").unwrap()));
        let carried = carry_over(&model, next, &params, moved);
        check(&carried, &params);
        assert_eq!((carried.image, carried.traces), (Some(next), 1));
        let list: Vec<String> = launch_list(&carried, Some("app"), "x86_64").iter().map(|item| format!("{}{}", item.layer, item.path)).collect();
        assert_eq!(list, ["0/bin/app", "1/lib/app-1.1.so", "0/etc/app"]);
        let same = carry_over(&model, next, &params, |_, _| None);
        assert_eq!(same, Model { image: Some(next), ..model });
    }

    #[test]
    fn two_paths_that_become_one_add_up() {
        let params = Params::default();
        let mut model = Model::default();
        learn(&mut model, &walk("app", &["a", "b", "c"]), &params);
        let merged = carry_over(&model, Digest::of(b"2"), &params, |_, path| (path.name() == b"b").then(|| (0, LayerPath::new("a").unwrap())));
        check(&merged, &params);
        let list = launch_list(&merged, Some("app"), "x86_64");
        assert_eq!((list.len(), list[0].probability), (2, 1.0));
    }
}

//! Random operations on a union and on the [`super::model`], and then whole trees compared.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use layer_format::manifest::{Attributes, FileMode, Mode};
use proptest::prelude::*;
use rustix::io::Errno;

use super::bench::{Place, User, path, rules};
use super::model::{Item, Model, Op, Tree, Virtual};
use crate::fs::layer::MemoryLayer;
use crate::fs::{NodeKind, Rename};
use crate::rules::Rules;

const TOPS: [&str; 4] = ["m", "f", "w", "x"];
const NAMES: [&str; 9] = ["a", "b", "m", "f", "df", "ff", "hf", "ro", "hid"];

/// Merge, full, write-copy and hide side by side and within each other, with all file modes and attributes.
fn all_rules() -> Rules {
    let stated = [
        ("m", Mode::Merge),
        ("f", Mode::Full),
        ("x", Mode::Hide),
        ("m/f", Mode::Full),
        ("m/m/f", Mode::WriteCopy),
        ("f/m", Mode::Merge),
        ("w/m", Mode::Merge),
        ("w/f", Mode::Full),
    ];
    let mut rules = rules(Mode::WriteCopy, &stated);
    for (at, mode) in [
        ("m/df", FileMode::Defaulted),
        ("w/df", FileMode::Defaulted),
        ("m/ff", FileMode::Full),
        ("w/ff", FileMode::Full),
        ("m/hf", FileMode::Hide),
        ("w/hf", FileMode::Hide),
    ] {
        rules.state_file(path(at), mode);
    }
    for at in ["m/ro", "w/ro", "f/a/ro"] {
        rules.add_attributes(path(at), Attributes { read_only: true, ..Attributes::default() });
    }
    for at in ["m/hid", "w/hid", "w/a/hid", "f/hid"] {
        rules.add_attributes(path(at), Attributes { hidden: true, ..Attributes::default() });
    }
    rules
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just("a"), 4 => Just("b"), 1 => proptest::sample::select(&NAMES[2..])].prop_map(str::to_owned)
}

/// Below one of `tops`, so that those stay directories.
fn at(tops: &'static [&'static str]) -> impl Strategy<Value = String> {
    (proptest::sample::select(tops), proptest::collection::vec(name(), 1..4)).prop_map(|(top, names)| format!("{top}/{}", names.join("/")))
}

/// Directories where the rules say that a file is have no meaning; that none can be made there is tested.
fn is_for_a_file(path: &str, is_dir: bool) -> bool {
    ["m/df", "w/df", "m/ff", "w/ff", "m/hf", "w/hf"].iter().any(|file| path.starts_with(file) && (is_dir || path.len() > file.len()))
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![3 => Just(Item::Dir), 4 => "[a-z]{0,6}".prop_map(Item::File), 1 => "[a-z]{1,4}".prop_map(Item::Link)]
}

fn host() -> impl Strategy<Value = Tree<Item>> {
    proptest::collection::vec((at(&TOPS), item()), 0..24).prop_map(|made| {
        let mut tree: Tree<Item> = TOPS.iter().map(|top| (top.to_string(), Item::Dir)).collect();
        for (path, item) in made {
            let ancestors: Vec<String> = path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect();
            if is_for_a_file(&path, item == Item::Dir) {
                continue;
            }
            if !tree.contains_key(&path) && ancestors.iter().all(|up| tree.get(up).is_none_or(|item| *item == Item::Dir)) {
                tree.extend(ancestors.into_iter().map(|up| (up, Item::Dir)));
                tree.insert(path, item);
            }
        }
        tree
    })
}

fn layer() -> impl Strategy<Value = Tree<Virtual>> {
    let made = prop_oneof![6 => item().prop_map(Virtual::Item), 1 => Just(Virtual::Tomb), 1 => Just(Virtual::OpaqueDir)];
    proptest::collection::vec((at(&TOPS), made), 0..16).prop_map(|made| {
        let dir = Virtual::Item(Item::Dir);
        let mut tree: Tree<Virtual> = TOPS.iter().map(|top| (top.to_string(), dir.clone())).collect();
        for (path, item) in made {
            let ancestors: Vec<String> = path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect();
            if is_for_a_file(&path, item == dir || item == Virtual::OpaqueDir) {
                continue;
            }
            if !tree.contains_key(&path) && ancestors.iter().all(|up| tree.get(up).is_none_or(|item| *item == dir || *item == Virtual::OpaqueDir)) {
                for up in ancestors {
                    tree.entry(up).or_insert(dir.clone());
                }
                tree.insert(path, item);
            }
        }
        tree
    })
}

fn op(tops: &'static [&'static str]) -> impl Strategy<Value = Op> {
    let content = || "[A-Z]{0,6}";
    prop_oneof![
        3 => (at(tops), content()).prop_map(|(at, content)| Op::Create(at, content)),
        3 => (at(tops), content()).prop_map(|(at, content)| Op::Write(at, content)),
        2 => at(tops).prop_map(Op::Mkdir),
        1 => (at(tops), "[A-Z]{1,4}").prop_map(|(at, target)| Op::Symlink(at, target)),
        3 => at(tops).prop_map(Op::Unlink),
        2 => at(tops).prop_map(Op::Rmdir),
        6 => (at(tops), at(tops)).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (at(tops), at(tops)).prop_map(|(from, to)| Op::RenameNew(from, to)),
    ]
}

fn build(tree: &Tree<Virtual>) -> MemoryLayer {
    let mut layer = MemoryLayer::new();
    for (path, item) in tree {
        match item {
            Virtual::Item(Item::Dir) => _ = layer.dir(path),
            Virtual::Item(Item::File(content)) => _ = layer.file(path, content),
            Virtual::Item(Item::Link(target)) => _ = layer.symlink(path, target),
            Virtual::OpaqueDir => _ = layer.opaque(path),
            Virtual::Tomb => _ = layer.whiteout(path),
        }
    }
    layer
}

fn lay_out(place: &Place, host: &Tree<Item>) {
    for (path, item) in host {
        match item {
            Item::Dir => fs::create_dir_all(place.host(path)).unwrap(),
            Item::File(content) => fs::write(place.host(path), content).unwrap(),
            Item::Link(target) => symlink(target, place.host(path)).unwrap(),
        }
    }
}

fn read_host(top: &Path, at: &str, out: &mut Tree<Item>) {
    for entry in fs::read_dir(top.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{at}/{}", entry.file_name().to_str().unwrap()).trim_start_matches('/').to_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read_host(top, &path, out);
            out.insert(path, Item::Dir);
        } else if kind.is_symlink() {
            out.insert(path, Item::Link(fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned()));
        } else {
            out.insert(path.clone(), Item::File(fs::read_to_string(top.join(&path)).unwrap()));
        }
    }
}

/// The sandbox as overlayfs would understand it.
fn read_sandbox(place: &Place, at: &str, out: &mut Tree<Virtual>) {
    let mut items = Tree::new();
    for entry in fs::read_dir(place.upper(at)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{at}/{name}").trim_start_matches('/').to_owned();
        let found = place.upper(&path).symlink_metadata().unwrap();
        if found.is_dir() {
            let mut value = [0; 8];
            let opaque = rustix::fs::getxattr(place.upper(&path), "user.overlay.opaque", &mut value) == Ok(1) && value[0] == b'y';
            read_sandbox(place, &path, out);
            items.insert(path, if opaque { Virtual::OpaqueDir } else { Virtual::Item(Item::Dir) });
        } else if found.file_type().is_symlink() {
            items.insert(path.clone(), Virtual::Item(Item::Link(fs::read_link(place.upper(&path)).unwrap().to_str().unwrap().to_owned())));
        } else if place.is_buried(&path) {
            items.insert(path, Virtual::Tomb);
        } else {
            items.insert(path.clone(), Virtual::Item(Item::File(fs::read_to_string(place.upper(&path)).unwrap())));
        }
    }
    out.extend(items);
}

/// All that a union shows below a path, found by listing and by name.
fn see(user: &User, at: &str, rules: &Rules, out: &mut Tree<Item>) {
    let listed = user.list(at).unwrap();
    assert!(listed.is_sorted());
    let names: BTreeSet<&str> = listed.iter().map(String::as_str).chain(NAMES).chain(TOPS).collect();
    for name in names {
        let path = format!("{at}/{name}").trim_start_matches('/').to_owned();
        let found = user.stat(&path);
        let in_list = found.is_ok() && !rules.is_hidden(&super::bench::path(&path));
        assert_eq!(listed.iter().any(|listed| listed == name), in_list, "{path} in {listed:?}");
        let Ok(found) = found else {
            assert_eq!(found.map(|_| ()), Err(Errno::NOENT), "{path}");
            continue;
        };
        let again = user.stat(&path).unwrap();
        assert_eq!(again.attr.ino, found.attr.ino, "{path}");
        let item = match found.attr.kind {
            NodeKind::Directory => {
                see(user, &path, rules, out);
                Item::Dir
            }
            NodeKind::Symlink => Item::Link(user.link_target(&path).unwrap()),
            _ => Item::File(user.read(&path).unwrap()),
        };
        out.insert(path, item);
    }
}

/// Whether the kernel would pass an operation on at all.
fn is_sensible(op: &Op) -> bool {
    match op {
        Op::Rename(from, to) | Op::RenameNew(from, to) => from != to && !to.starts_with(&format!("{from}/")) && !from.starts_with(&format!("{to}/")),
        _ => true,
    }
}

fn run(user: &User, op: &Op) -> Result<(), Errno> {
    match op {
        Op::Create(path, content) => user.create(path, content),
        Op::Write(path, content) => user.write(path, content),
        Op::Mkdir(path) => user.mkdir(path),
        Op::Symlink(path, target) => user.symlink(path, target),
        Op::Unlink(path) => user.unlink(path),
        Op::Rmdir(path) => user.rmdir(path),
        Op::Rename(from, to) => user.rename(from, to, Rename::Replace),
        Op::RenameNew(from, to) => user.rename(from, to, Rename::NoReplace),
    }
}

/// The names that an operation looks at, which may place a defaulted file.
fn look(model: &mut Model, op: &Op) {
    let paths: Vec<&String> = match op {
        Op::Rename(from, to) | Op::RenameNew(from, to) => vec![from, to],
        Op::Create(path, _) | Op::Write(path, _) | Op::Mkdir(path) | Op::Symlink(path, _) | Op::Unlink(path) | Op::Rmdir(path) => vec![path],
    };
    for path in paths {
        let _ = model.look(path);
    }
}

struct Case {
    place: Place,
    user: User,
    layers: Vec<MemoryLayer>,
    model: Model,
}

impl Case {
    fn new(layers: Vec<Tree<Virtual>>, host: Tree<Item>) -> Self {
        let place = Place::new();
        lay_out(&place, &host);
        let built: Vec<MemoryLayer> = layers.iter().map(build).collect();
        let user = place.union(&built, all_rules());
        Self { place, user, layers: built, model: Model::new(layers, host, all_rules()) }
    }

    fn step(&mut self, op: &Op) {
        look(&mut self.model, op);
        let (done, expected) = (run(&self.user, op), self.model.run(op));
        assert_eq!(done, expected, "{op:?}");
    }

    /// Everything is where the model has it; also for a new union over the same sandbox, and in the sandbox as overlayfs reads it.
    fn compare(&mut self) {
        let (mut expected, mut seen) = (Tree::new(), Tree::new());
        self.model.view("", &mut expected);
        see(&self.user, "", &self.model.rules, &mut seen);
        assert_eq!(seen, expected, "the view");
        let mut host = Tree::new();
        read_host(&self.place.host(""), "", &mut host);
        assert_eq!(host, self.model.host, "the host");
        let mut sandbox = Tree::new();
        read_sandbox(&self.place, "", &mut sandbox);
        assert!(fs::read_dir(self.place.work().join("union")).unwrap().next().is_none(), "nothing stays in the working directory");
        let mut overlay = Model { sandbox, ..self.model.clone() };
        let mut again = Tree::new();
        overlay.view("", &mut again);
        assert_eq!(again, expected, "the sandbox as overlayfs reads it");
        let renewed = self.place.union(&self.layers, all_rules());
        let defaulted = |path: &str| all_rules().file_mode(&path_of(path)) == Some(FileMode::Defaulted);
        let mut renewed_view = Tree::new();
        see(&renewed, "", &self.model.rules, &mut renewed_view);
        // A defaulted file is placed again in the next run.
        renewed_view.retain(|path, _| !defaulted(path));
        expected.retain(|path, _| !defaulted(path));
        assert_eq!(renewed_view, expected, "the next run");
    }
}

fn path_of(text: &str) -> layer_format::LayerPath {
    path(text)
}

/// `PROPTEST_CASES` asks for another number of cases.
fn config(cases: u32, max_shrink_iters: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, max_shrink_iters, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(96, 4000))]

    #[test]
    fn agrees_with_the_model(layers in proptest::collection::vec(layer(), 0..3), host in host(), ops in proptest::collection::vec(op(&TOPS), 1..60)) {
        let mut case = Case::new(layers, host);
        for op in ops.iter().filter(|op| is_sensible(op)) {
            case.step(op);
        }
        case.compare();
    }
}

const MINE: [&[&str]; 3] = [&["m"], &["f"], &["w"]];

proptest! {
    #![proptest_config(config(24, 500))]

    #[test]
    fn threads_in_subtrees_of_their_own_agree_with_the_model(
        layers in proptest::collection::vec(layer(), 0..3),
        host in host(),
        ops in (proptest::collection::vec(op(MINE[0]), 40), proptest::collection::vec(op(MINE[1]), 40), proptest::collection::vec(op(MINE[2]), 40)),
    ) {
        let mut case = Case::new(layers, host);
        let ops = [ops.0, ops.1, ops.2].map(|ops| ops.into_iter().filter(is_sensible).collect::<Vec<_>>());
        let done: Vec<Vec<Result<(), Errno>>> = std::thread::scope(|scope| {
            let threads = ops.each_ref().map(|ops| {
                let user = case.user.clone();
                scope.spawn(move || ops.iter().map(|op| run(&user, op)).collect::<Vec<_>>())
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (op, done) in ops.iter().flatten().zip(done.iter().flatten()) {
            look(&mut case.model, op);
            prop_assert_eq!(*done, case.model.run(op), "{:?}", op);
        }
        case.compare();
    }
}

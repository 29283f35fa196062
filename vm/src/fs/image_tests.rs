//! The merged view against a naive model: all layers folded into one map of paths.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

use crate::fs::layer::MemoryLayer;

const NOBODY: Caller = Caller { pid: 0 };

#[derive(Clone, Debug)]
enum Make {
    Dir,
    Opaque,
    File(u8),
    Symlink,
    Whiteout,
    HardLinks,
    Xattr,
}

fn makes() -> impl Strategy<Value = Vec<(String, Make)>> {
    let make = prop_oneof![
        3 => Just(Make::Dir),
        1 => Just(Make::Opaque),
        3 => any::<u8>().prop_map(Make::File),
        1 => Just(Make::Symlink),
        2 => Just(Make::Whiteout),
        1 => Just(Make::HardLinks),
        1 => Just(Make::Xattr),
    ];
    proptest::collection::vec(("[abc](/[abc]){0,3}", make), 0..12)
}

fn build(makes: &[(String, Make)]) -> MemoryLayer {
    let mut layer = MemoryLayer::new();
    for (path, make) in makes {
        let at = MemoryLayer::path(path);
        let mut ancestors = std::iter::successors(at.parent(), LayerPath::parent);
        if layer.get(&at).is_some() || ancestors.any(|up| layer.get(&up).is_some_and(|entry| !entry.is_dir())) {
            continue;
        }
        match make {
            Make::Dir => layer.dir(path).meta.mode = 0o700,
            Make::Opaque => _ = layer.opaque(path),
            Make::File(fill) => _ = layer.file(path, vec![*fill; usize::from(*fill) * 3]),
            Make::Symlink => _ = layer.symlink(path, path),
            Make::Whiteout => _ = layer.whiteout(path),
            Make::HardLinks => layer.hard_links(&[path, &format!("{path}x")], path.as_bytes()),
            Make::Xattr => layer.file(path, "x").meta.xattrs = vec![(b"user.a".to_vec(), path.clone().into_bytes()), (OPAQUE.to_vec(), b"y".to_vec())],
        }
    }
    layer
}

/// What a path is, and the layer it comes from, lowest first.
fn fold(layers: &[MemoryLayer]) -> BTreeMap<LayerPath, (usize, Entry)> {
    let mut model: BTreeMap<LayerPath, (usize, Entry)> = BTreeMap::new();
    for (number, layer) in layers.iter().enumerate() {
        for entry in layer.entries() {
            let merges = matches!(entry.kind, Kind::Directory { opaque: false }) && model.get(&entry.path).is_some_and(|(_, below)| below.is_dir());
            if !merges {
                model.retain(|path, (from, _)| *from == number || !path.starts_with(&entry.path));
            }
            if entry.kind != Kind::Whiteout {
                model.insert(entry.path.clone(), (number, entry.clone()));
            }
        }
    }
    model
}

fn image(layers: &[MemoryLayer], host: Option<&MemoryLayer>) -> ImageFs {
    let views = layers.iter().map(|layer| Arc::new(layer.clone()) as Arc<dyn LayerView>).collect();
    let host_has = host.cloned().map(|host| -> HostHas { Box::new(move |path| host.get(path).is_some_and(Entry::is_dir)) });
    ImageFs::new(views, Stubs::default(), Stubs::default(), host_has)
}

/// All children of a directory, asked for `step` at a time.
fn children(fs: &ImageFs, ino: u64, step: usize) -> Vec<Arc<Verdict>> {
    let mut all = Vec::new();
    loop {
        let page = fs.list(ino, 0, all.len(), step, NOBODY).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Compares a subtree with the model; returns the references taken.
fn compare(fs: &ImageFs, ino: u64, path: &LayerPath, layers: &[MemoryLayer], model: &BTreeMap<LayerPath, (usize, Entry)>, taken: &mut Vec<u64>) {
    let expected: Vec<&LayerPath> = model.keys().filter(|key| key.split().is_some_and(|(parent, _)| parent == path.as_bytes())).collect();
    let listed = children(fs, ino, 2);
    assert_eq!(
        listed.iter().map(|child| ImageFs::name(child).to_vec()).collect::<Vec<_>>(),
        expected.iter().map(|path| path.name().to_vec()).collect::<Vec<_>>()
    );
    for child in &listed {
        let attr = fs.enter(child).unwrap();
        taken.push(attr.ino);
        let at = path.join(ImageFs::name(child)).unwrap();
        let (number, entry) = &model[&at];
        let again = fs.lookup(ino, at.name(), NOBODY).unwrap().unwrap();
        taken.push(again.ino);
        assert_eq!(again, attr);
        assert_eq!(fs.attr(attr.ino, NOBODY).unwrap(), attr);
        assert_eq!(fs.peek(child), (attr.ino, attr.kind));
        assert_eq!((attr.perm, attr.size, attr.kind), (entry.meta.mode, entry.len(), kind(entry)));
        assert_eq!(attr.nlink, entry.meta.hard_link.map_or(1, |link| link.count));
        match &entry.kind {
            Kind::File(_) => {
                let content = layers[*number].read(entry, 1, 100, NOBODY).unwrap();
                assert_eq!(fs.read(attr.ino, 0, 1, 100, NOBODY).unwrap(), content);
                let names = if entry.meta.xattrs.is_empty() { &b""[..] } else { b"user.a\0" };
                assert_eq!(fs.xattr_names(attr.ino).unwrap(), names);
                assert_eq!(fs.xattr(attr.ino, b"user.a").ok(), entry.meta.xattrs.first().map(|(_, value)| value.clone()));
                assert_eq!(fs.xattr(attr.ino, OPAQUE), Err(Errno::NODATA));
            }
            Kind::Symlink(target) => assert_eq!(&fs.read_link(attr.ino).unwrap(), target),
            _ => compare(fs, attr.ino, &at, layers, model, taken),
        }
    }
    for name in [&b"a"[..], b"b", b"c", b"d"] {
        let there = model.contains_key(&path.join(name).unwrap());
        let found = fs.lookup(ino, name, NOBODY).unwrap();
        assert_eq!(found.is_some(), there);
        taken.extend(found.map(|attr| attr.ino));
    }
}

/// What overlayfs makes of the image filesystem over the host.
fn overlay(fs: &ImageFs, ino: Option<u64>, host: &MemoryLayer, host_counts: bool, path: &LayerPath, out: &mut BTreeMap<LayerPath, NodeKind>) {
    let mut names: BTreeMap<LayerPath, Option<Attr>> = BTreeMap::new();
    if host_counts {
        names.extend(host.list(path, None, usize::MAX, NOBODY).unwrap().into_iter().map(|entry| (entry.path, None)));
    }
    for child in ino.map(|ino| children(fs, ino, 3)).unwrap_or_default() {
        names.insert(path.join(ImageFs::name(&child)).unwrap(), fs.enter(&child));
    }
    for (at, found) in names {
        let below = host.get(&at).filter(|_| host_counts);
        let kind = found.as_ref().map_or_else(|| kind(below.unwrap()), |attr| attr.kind);
        if kind == NodeKind::CharDevice {
            assert!(host_counts, "{at}: overlayfs lists whiteouts of a directory that it does not merge");
            continue;
        }
        let merges = below.is_some_and(Entry::is_dir) && found.as_ref().is_none_or(|attr| fs.xattr(attr.ino, OPAQUE).is_err());
        if kind == NodeKind::Directory {
            overlay(fs, found.map(|attr| attr.ino), host, merges, &at, out);
        }
        out.insert(at, kind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_the_folded_layers(makes in proptest::collection::vec(makes(), 1..5)) {
        let layers: Vec<MemoryLayer> = makes.iter().map(|makes| build(makes)).collect();
        let fs = image(&layers, None);
        let mut taken = Vec::new();
        compare(&fs, ROOT, &LayerPath::root(), &layers, &fold(&layers), &mut taken);
        taken.iter().for_each(|ino| fs.forget(*ino, 1));
        prop_assert_eq!(fs.inode_count(), 1);
    }

    #[test]
    fn overlayfs_over_the_host_agrees_with_the_host_as_lowest_layer(host in makes(), makes in proptest::collection::vec(makes(), 1..4)) {
        let host: Vec<_> = host.into_iter().filter(|(_, make)| !matches!(make, Make::Whiteout | Make::Opaque)).collect();
        let host = build(&host);
        let layers: Vec<MemoryLayer> = makes.iter().map(|makes| build(makes)).collect();
        let all: Vec<MemoryLayer> = std::iter::once(host.clone()).chain(layers.iter().cloned()).collect();
        let mut seen = BTreeMap::new();
        overlay(&image(&layers, Some(&host)), Some(ROOT), &host, true, &LayerPath::root(), &mut seen);
        let expected: BTreeMap<LayerPath, NodeKind> = fold(&all).into_iter().filter(|(path, _)| !path.is_root()).map(|(path, (_, entry))| (path, kind(&entry))).collect();
        prop_assert_eq!(seen, expected);
    }
}

/// Counts what is asked of a layer.
struct Counting(MemoryLayer, Mutex<Vec<String>>);

impl LayerView for Counting {
    fn lookup(&self, path: &LayerPath, caller: Caller) -> Result<Option<Entry>, FetchError> {
        self.1.lock().push(format!("lookup {path}"));
        self.0.lookup(path, caller)
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, caller: Caller) -> Result<Vec<Entry>, FetchError> {
        self.1.lock().push(format!("list {directory}"));
        self.0.list(directory, after, max, caller)
    }

    fn read(&self, entry: &Entry, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, FetchError> {
        self.0.read(entry, offset, len, caller)
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, caller: Caller) -> Result<Option<u64>, FetchError> {
        self.0.seek(entry, offset, hole, caller)
    }
}

#[test]
fn a_lookup_asks_only_layers_that_can_have_the_name_and_each_once() {
    let mut low = MemoryLayer::new();
    low.file("opt/app/low", "1");
    let mut high = MemoryLayer::new();
    high.file("etc/high", "2");
    let layers = [low, high].map(|layer| Arc::new(Counting(layer, Mutex::default())));
    let views = layers.iter().map(|layer| Arc::clone(layer) as Arc<dyn LayerView>).collect();
    let mut always = Stubs::default();
    always.add_dir(LayerPath::new("proc").unwrap());
    let fs = ImageFs::new(views, always, Stubs::default(), None);
    let opt = fs.lookup(ROOT, b"opt", NOBODY).unwrap().unwrap();
    let app = fs.lookup(opt.ino, b"app", NOBODY).unwrap().unwrap();
    fs.lookup(app.ino, b"low", NOBODY).unwrap().unwrap();
    fs.lookup(ROOT, b"proc", NOBODY).unwrap().unwrap();
    assert_eq!(*layers[0].1.lock(), ["lookup /opt", "lookup /opt/app", "lookup /opt/app/low"]);
    assert_eq!(*layers[1].1.lock(), ["lookup /opt"]);
}

#[test]
fn names_of_one_file_share_an_inode_and_numbers_last() {
    let mut layer = MemoryLayer::new();
    layer.hard_links(&["a/x", "b/y"], b"one");
    layer.file("other", "two");
    let fs = image(&[layer], None);
    let at = |dir: &[u8], name: &[u8]| {
        let dir = fs.lookup(ROOT, dir, NOBODY).unwrap().unwrap().ino;
        fs.lookup(dir, name, NOBODY).unwrap().unwrap()
    };
    let (x, y) = (at(b"a", b"x"), at(b"b", b"y"));
    assert_eq!((x.ino, x.nlink), (y.ino, 2));
    fs.forget(x.ino, 2);
    assert_eq!(fs.attr(x.ino, NOBODY), Err(Errno::STALE));
    assert_eq!(at(b"a", b"x").ino, x.ino);
    assert_ne!(fs.lookup(ROOT, b"other", NOBODY).unwrap().unwrap().ino, x.ino);
}

#[test]
fn a_file_that_a_lower_layer_keeps_is_not_replaced() {
    let mut layers = [MemoryLayer::new(), MemoryLayer::new()];
    layers[0].file("d/kept", "old");
    layers[0].file("d/gone", "old");
    layers[1].file("d/kept", "newer");
    layers[1].whiteout("d/gone");
    let mut rules = Rules::default();
    for at in ["d/kept", "d/gone", "d/none"] {
        rules.keep(LayerPath::new(at).unwrap(), 0);
    }
    let fs = image(&layers, None).keeping(Arc::new(rules));
    let dir = fs.lookup(ROOT, b"d", NOBODY).unwrap().unwrap().ino;
    for name in [&b"kept"[..], b"gone"] {
        let found = fs.lookup(dir, name, NOBODY).unwrap().unwrap();
        assert_eq!(fs.read(found.ino, 0, 0, 9, NOBODY).unwrap(), b"old");
    }
    let listed: Vec<_> = children(&fs, dir, 9).iter().map(|child| ImageFs::name(child).to_vec()).collect();
    assert_eq!(listed, [b"gone", b"kept"]);
}

#[test]
fn stubs_give_way_to_images_unless_those_are_of_no_use() {
    type Prepare = fn(&mut MemoryLayer);
    let cases: [(&str, Prepare, &[u8]); 4] = [
        ("absent", |_| (), b"host"),
        ("empty", |layer| _ = layer.file("etc/hosts", ""), b"host"),
        ("link to a missing service", |layer| _ = layer.symlink("etc/hosts", "/run/hosts"), b"host"),
        ("real", |layer| _ = layer.file("etc/hosts", "image"), b"image"),
    ];
    for (name, prepare, content) in cases {
        let mut layer = MemoryLayer::new();
        prepare(&mut layer);
        let mut stubs = Stubs::default();
        stubs.add_file(LayerPath::new("etc/hosts").unwrap(), b"host".to_vec());
        let fs = ImageFs::new(vec![Arc::new(layer)], Stubs::default(), stubs, None);
        let etc = fs.lookup(ROOT, b"etc", NOBODY).unwrap().unwrap();
        let hosts = fs.lookup(etc.ino, b"hosts", NOBODY).unwrap().unwrap();
        assert_eq!(fs.read(hosts.ino, 0, 0, 100, NOBODY).unwrap(), content, "{name}");
    }
}

#[test]
fn large_directories_are_listed_in_pieces_and_completely() {
    let mut layers = [MemoryLayer::new(), MemoryLayer::new()];
    for n in 0..3000 {
        layers[n % 2].file(format!("d/{n:05}"), "");
        layers[1].file(format!("d/{:05}", n / 3 * 3), "");
    }
    let fs = image(&layers, None);
    let d = fs.lookup(ROOT, b"d", NOBODY).unwrap().unwrap();
    let names: BTreeSet<Vec<u8>> = children(&fs, d.ino, 100).iter().map(|child| ImageFs::name(child).to_vec()).collect();
    assert_eq!(names.len(), 3000);
}

#[test]
fn holes_show_in_blocks_and_seek() {
    let mut layer = MemoryLayer::new();
    layer.sparse("s", 4096, 1 << 20);
    let fs = image(&[layer], None);
    let s = fs.lookup(ROOT, b"s", NOBODY).unwrap().unwrap();
    assert_eq!((s.size, s.blocks), ((1 << 20) + 8192, 16));
    assert_eq!(fs.seek(s.ino, 0, 0, true, NOBODY), Ok(4096));
    assert_eq!(fs.seek(s.ino, 0, 4096, false, NOBODY), Ok(4096 + (1 << 20)));
    assert_eq!(fs.seek(s.ino, 0, s.size, true, NOBODY), Err(Errno::NXIO));
}

#[test]
fn covered_directories_are_found_in_every_directory_of_a_layer_and_listed_in_none() {
    let mut layer = MemoryLayer::new();
    layer.file("d/secret/in", "x");
    layer.file("d/file", "x");
    layer.file("d/beside", "x");
    let covered = BTreeSet::from(["d/secret", "d/file", "d/nothing", "elsewhere/x"].map(MemoryLayer::path));
    let fs = image(&[layer], Some(&MemoryLayer::new())).covering(covered);
    let dir = fs.lookup(ROOT, b"d", NOBODY).unwrap().unwrap().ino;
    assert_eq!(children(&fs, dir, 1).iter().map(ImageFs::name).collect::<Vec<_>>(), [b"beside"]);
    for name in [&b"secret"[..], b"file", b"nothing"] {
        let found = fs.lookup(dir, name, NOBODY).unwrap().unwrap();
        assert_eq!(found.kind, NodeKind::Directory);
        assert!(children(&fs, found.ino, 9).is_empty() && fs.lookup(found.ino, b"in", NOBODY).unwrap().is_none());
        assert_eq!(fs.xattr(found.ino, OPAQUE).as_deref(), Ok(&b"y"[..]), "the host's must not show through");
    }
    assert_eq!(fs.lookup(ROOT, b"elsewhere", NOBODY), Ok(None), "no parents are made up");
}

//! Import of tars and export to them: what other tools write is understood, what comes back is what went in, and a
//! hostile archive is refused.

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use chunker::{ImportError, ImportOptions, MemoryStore, TarError, export_layer, export_tar, import_directory, import_tar};
use common::{FoundKind, Rng, Tree, every_kind, import, import_bytes, path, plain, random_tree, read_back, read_directory};
use layer_format::Digest;
use layer_format::entry::Kind;
use proptest::prelude::*;

fn export(store: &MemoryStore, layers: &[Digest]) -> Vec<u8> {
    let mut out = Vec::new();
    export_tar(layers, store, &mut out, &()).unwrap();
    out
}

#[test]
fn every_kind_survives_an_export_and_an_import() {
    let dir = tempfile::tempdir().unwrap();
    every_kind(dir.path());
    let store = MemoryStore::new();
    let root = import(dir.path(), &store).root;
    let tar = export(&store, &[root]);
    assert_eq!(import_bytes(&tar, &store).root, root);
    assert_eq!(export(&store, &[root]), tar);
    assert!(tar.len() < 5_000_000, "holes are not written: {}", tar.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_random_tree_survives_an_export_and_an_import(seed: u64, count in 0u64..100) {
        let dir = tempfile::tempdir().unwrap();
        random_tree(dir.path(), seed, count);
        let store = MemoryStore::new();
        let imported = import(dir.path(), &store);
        let again = import_bytes(&export(&store, &[imported.root]), &store);
        prop_assert_eq!((again.root, again.new_objects, again.entries), (imported.root, 0, imported.entries));
    }
}

/// What GNU tar makes of the tree, in each of its formats, gives the same tree.
#[test]
fn gnu_tar_and_a_directory_import_give_the_same_root() {
    let dir = tempfile::tempdir().unwrap();
    every_kind(dir.path());
    let store = MemoryStore::new();
    let root = import(dir.path(), &store).root;
    for (format, options) in [
        ("pax", &["--xattrs"][..]),
        ("pax", &["--xattrs", "--sparse", "--sparse-version=0.0"]),
        ("pax", &["--xattrs", "--sparse", "--sparse-version=0.1"]),
        ("pax", &["--xattrs", "--sparse"]),
        ("gnu", &["--sparse"]),
        ("gnu", &[]),
    ] {
        let mut command = Command::new("tar");
        command.args(["c", "--numeric-owner", "--format", format]).args(options).arg("-C").arg(dir.path()).arg(".");
        let output = match command.stderr(Stdio::inherit()).output() {
            Ok(output) => output,
            Err(error) => {
                eprintln!("skipped: tar cannot be run: {error}");
                return;
            }
        };
        assert!(output.status.success());
        let imported = import_bytes(&output.stdout, &store);
        let (holes, exact) = (options.contains(&"--sparse"), format == "pax");
        if holes && exact {
            assert_eq!(imported.root, root, "{options:?}");
        } else {
            assert_eq!(rough(read_back(&store, imported.root)), rough(read_back(&store, root)), "{format} {options:?}");
        }
    }
}

/// Without holes, attributes, and fractions of seconds.
fn rough(tree: Tree) -> Tree {
    let mut tree = plain(tree);
    for found in tree.values_mut() {
        found.meta.xattrs.clear();
        found.meta.mtime_ns = 0;
    }
    tree
}

#[test]
fn gnu_tar_extracts_an_export() {
    let dir = tempfile::tempdir().unwrap();
    every_kind(dir.path());
    // A time before 1970 with a fraction is rounded by some versions of tar.
    common::set_mtime(&dir.path().join("tool"), 5, 250_000_000);
    let store = MemoryStore::new();
    let tar = export(&store, &[import(dir.path(), &store).root]);
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new("tar");
    command.args(["x", "--xattrs", "--xattrs-include=user.*", "--numeric-owner", "--same-owner", "-p", "-C"]).arg(out.path()).stdin(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: tar cannot be run");
        return;
    };
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(child.wait().unwrap().success());
    let mut expected = plain(read_directory(dir.path()));
    for found in expected.values_mut() {
        found.meta.xattrs.retain(|(name, _)| !name.starts_with(b"user.overlay."));
    }
    assert_eq!(plain(read_directory(out.path())), expected);
}

#[test]
fn compressed_archives_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    random_tree(dir.path(), 5, 80);
    let store = MemoryStore::new();
    let root = import(dir.path(), &store).root;
    let tar = export(&store, &[root]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for compressed in [&gzip, &zstd] {
        assert_eq!(import_bytes(compressed, &store).root, root);
        let cut = &compressed[..compressed.len() - 9];
        assert!(matches!(refused(cut), TarError::Truncated { .. } | TarError::Read { .. }));
    }
    // Several members, as parallel compressors write.
    let (head, tail) = tar.split_at(tar.len() / 2);
    let members = [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 1).unwrap()].concat();
    assert_eq!(import_bytes(&members, &store).root, root);
}

#[test]
fn a_zstd_window_beyond_the_bound_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&vec![0; 1 << 20]).unwrap();
    assert!(matches!(refused(&encoder.finish().unwrap()), TarError::Read { .. }));
}

/// A tar built by hand, so that it can be wrong.
#[derive(Default)]
struct Builder(Vec<u8>);

impl Builder {
    fn header(mut self, name: &[u8], kind: u8, link: &[u8], size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(size);
        let raw = header.as_old_mut();
        raw.name[..name.len()].copy_from_slice(name);
        raw.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    fn data(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.header(name.as_bytes(), b'0', b"", content.len() as u64).data(content)
    }

    fn directory(self, name: &str) -> Self {
        self.header(name.as_bytes(), b'5', b"", 0)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.header(name.as_bytes(), kind, target.as_bytes(), 0)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest..).find(|len| rest + len.to_string().len() == *len).unwrap();
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(b"PaxHeaders/x", b'x', b"", body.len() as u64).data(&body)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn new() -> Builder {
    Builder::default()
}

/// The error that an archive is refused with. No pack may be visible.
fn refused(tar: &[u8]) -> TarError {
    let store = MemoryStore::new();
    match import_tar(tar, &ImportOptions { threads: 2, ..ImportOptions::default() }, &store, &()) {
        Err(ImportError::Tar(error)) => {
            assert_eq!(store.packs(), []);
            assert!(!error.to_string().contains('\x1b'));
            error
        }
        other => panic!("{other:?}"),
    }
}

fn tree(tar: &[u8]) -> Tree {
    let store = MemoryStore::new();
    read_back(&store, import_bytes(tar, &store).root)
}

fn names(tree: &Tree) -> Vec<String> {
    tree.keys().map(ToString::to_string).collect()
}

fn file<'a>(tree: &'a Tree, name: &str) -> &'a [u8] {
    match &tree[&path(name)].kind {
        FoundKind::File { content, .. } => content,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_brought_into_form() {
    let found = tree(&new().file("/absolute//x/./y", b"1").file("./dot", b"2").directory("dir/").link(b'2', "dir/up", "../..").end());
    assert_eq!(names(&found), ["/", "/absolute", "/dir", "/dot", "/absolute/x", "/absolute/x/y", "/dir/up"]);
    assert_eq!(found[&path("absolute")].meta.mode, 0o755);
    assert_eq!(found[&path("dir")].meta.mode, 0o644);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let found = tree(
        &new()
            .file("a", b"old")
            .file("d/x", b"x")
            .link(b'1', "b", "a")
            .file("a", b"new")
            .directory("d")
            .link(b'2', "b2", "a")
            .directory("b2")
            .file("b2/y", b"y")
            .end(),
    );
    assert_eq!((file(&found, "a"), file(&found, "b"), file(&found, "d/x"), file(&found, "b2/y")), (&b"new"[..], &b"old"[..], &b"x"[..], &b"y"[..]));
    assert_eq!((found[&path("a")].meta.hard_link, found[&path("b")].meta.hard_link), (None, None));
}

#[test]
fn hard_links_join_names() {
    let found = tree(&new().file("z", b"content").link(b'1', "a", "./z").link(b'1', "sub/m", "/a").link(b'2', "s", "z").link(b'1', "s2", "s").end());
    let link = found[&path("a")].meta.hard_link.unwrap();
    assert_eq!((link.group, link.count), (Digest::of(b"a").prefix64(), 3));
    assert_eq!((found[&path("z")].meta.hard_link, found[&path("sub/m")].meta.hard_link), (Some(link), Some(link)));
    assert_eq!(file(&found, "sub/m"), b"content");
    assert_eq!(found[&path("s2")].kind, FoundKind::Other(Kind::Symlink(b"z".to_vec())));
}

#[test]
fn pax_records_overrule_the_header_and_global_ones_do_not() {
    let global = new().header(b"pax_global_header", b'g', b"", 20).data(b"20 comment=abcdefgh\n");
    let records: &[(&str, &[u8])] = &[
        ("path", "d/\u{e9}".as_bytes()),
        ("uid", b"4000000000"),
        ("gid", b"7"),
        ("mtime", b"-1.5"),
        ("size", b"3"),
        ("SCHILY.xattr.user.a", b"\0\n="),
        ("LIBARCHIVE.xattr.user.b%3D", b"aGk"),
        ("SCHILY.xattr.security.selinux", b"host"),
        ("comment", b"x"),
    ];
    let found = tree(&Builder(global.pax(records).0).header(b"short", b'0', b"", 0).data(b"abc").file("next", b"").end());
    let meta = &found[&path("d/\u{e9}")].meta;
    assert_eq!((meta.uid, meta.gid, meta.mtime_s, meta.mtime_ns), (4_000_000_000, 7, -2, 500_000_000));
    assert_eq!(meta.xattrs, [(b"user.a".to_vec(), b"\0\n=".to_vec()), (b"user.b=".to_vec(), b"hi".to_vec())]);
    assert_eq!(found[&path("next")].meta.uid, 0);
}

#[test]
fn gnu_long_names_are_read() {
    let (long, target) = ("d/".repeat(150) + "x", "t".repeat(300));
    let tar = new().header(b"././@LongLink", b'L', b"", long.len() as u64 + 1).data(format!("{long}\0").as_bytes());
    let tar = tar.header(b"././@LongLink", b'K', b"", target.len() as u64 + 1).data(format!("{target}\0").as_bytes()).link(b'2', "cut", "cut");
    let found = tree(&tar.end());
    assert_eq!(found[&path(&long)].kind, FoundKind::Other(Kind::Symlink(target.into_bytes())));
}

#[test]
fn devices_are_kept_and_unknown_types_are_reported() {
    let store = MemoryStore::new();
    let imported = import_bytes(
        &new().header(b"null", b'3', b"", 0).header(b"disk", b'4', b"", 0).header(b"odd", b'Z', b"", 5).data(b"12345").file("after", b"x").end(),
        &store,
    );
    let found = read_back(&store, imported.root);
    assert_eq!(names(&found), ["/", "/after", "/disk", "/null"]);
    assert_eq!(found[&path("null")].kind, FoundKind::Other(Kind::CharDevice { major: 0, minor: 0 }));
    assert_eq!(imported.skipped.len(), 1);
}

#[test]
fn a_name_that_would_escape_is_refused() {
    for name in ["../x", "a/../../x", "/../x", "a/..", ".."] {
        assert!(matches!(refused(&new().file(name, b"x").end()), TarError::Escape { .. }), "{name}");
        assert!(matches!(refused(&new().file("f", b"").link(b'1', "h", name).end()), TarError::Escape { .. }), "hard link to {name}");
        assert!(matches!(refused(&new().pax(&[("path", name.as_bytes())]).file("x", b"x").end()), TarError::Escape { .. }), "pax {name}");
    }
}

#[test]
fn an_entry_below_a_link_or_a_file_is_refused() {
    let below = |tar: Builder| refused(&tar.file("a/link/passwd", b"root::0:0").end());
    assert!(matches!(below(new().link(b'2', "a/link", "/etc")), TarError::Escape { .. }));
    assert!(matches!(below(new().directory("a/link").link(b'2', "a/link", "/etc")), TarError::Escape { .. }));
    assert!(matches!(below(new().file("a/link", b"x")), TarError::Escape { .. }));
    assert!(matches!(below(new().header(b"a/link", b'3', b"", 0)), TarError::Escape { .. }));
    assert!(matches!(below(new().link(b'2', "s", "/etc").link(b'1', "a/link", "s")), TarError::Escape { .. }));
    // The link may come afterwards only if nothing is below it.
    assert!(matches!(refused(&new().file("a/link/x", b"x").link(b'2', "a/link", "/etc").end()), TarError::Invalid { .. }));
    assert!(matches!(refused(&new().link(b'2', "./", "/etc").end()), TarError::Invalid { .. }));
    assert!(matches!(refused(&new().file("f", b"").link(b'1', ".", "f").end()), TarError::Invalid { .. }));
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    assert!(matches!(refused(&new().link(b'1', "a", "missing").end()), TarError::LinkTarget { .. }));
    assert!(matches!(refused(&new().link(b'1', "a", "later").file("later", b"").end()), TarError::LinkTarget { .. }));
    assert!(matches!(refused(&new().directory("d").link(b'1', "a", "d").end()), TarError::LinkTarget { .. }));
    assert!(matches!(refused(&new().link(b'1', "a", "a").end()), TarError::LinkTarget { .. }));
    assert_eq!(names(&tree(&new().file("a", b"").link(b'1', "a", "a").end())), ["/", "/a"]);
}

#[test]
fn an_archive_that_is_cut_short_is_refused_wherever_it_is_cut() {
    let whole = new().file("a", &Rng(1).bytes(2000)).pax(&[("path", b"b")]).file("x", &Rng(2).bytes(700)).link(b'2', "c", "a").end();
    for len in (0..whole.len() - 1024).step_by(97).chain([0, 1, 511, 512, 513, whole.len() - 1025, whole.len() - 1024]) {
        assert!(matches!(refused(&whole[..len]), TarError::Truncated { .. } | TarError::NotATar), "cut at {len}");
    }
    assert_eq!(tree(&whole[..whole.len() - 512]).len(), 4);
}

#[test]
fn a_damaged_header_is_refused() {
    let whole = new().file("a", b"x").file("b", b"y").end();
    for at in [0, 100, 124, 148, 156, 300] {
        let mut damaged = whole.clone();
        damaged[1024 + at] ^= 0x11;
        assert!(matches!(refused(&damaged), TarError::Checksum { offset: 1024 }), "{at}");
    }
    assert!(matches!(refused(&Rng(3).bytes(5000)), TarError::NotATar));
    assert!(matches!(refused(b"hello"), TarError::NotATar | TarError::Truncated { .. }));
}

#[test]
fn sizes_that_lie_are_refused() {
    assert!(matches!(refused(&new().header(b"a", b'0', b"", 1 << 40).data(b"x").end()), TarError::Truncated { .. }));
    assert!(matches!(refused(&new().pax(&[("size", b"9223372036854775807")]).file("a", b"x").end()), TarError::TooLarge { .. }));
    assert!(matches!(refused(&new().pax(&[("size", b"99999999999999999999999")]).file("a", b"x").end()), TarError::Invalid { .. }));
    assert!(matches!(refused(&new().pax(&[("uid", b"4294967296")]).file("a", b"x").end()), TarError::TooLarge { .. }));
    assert!(matches!(refused(&new().header(b"x", b'x', b"", 1 << 33).data(b"").end()), TarError::TooLarge { .. }));
    assert!(matches!(refused(&new().header(b"x", b'L', b"", 1 << 33).data(b"").end()), TarError::TooLarge { .. }));
    assert!(matches!(refused(&new().pax(&[("path", &[b'a'; 300])]).file("a", b"x").end()), TarError::Invalid { .. }));
    assert!(matches!(refused(&new().pax(&[("path", "a/".repeat(5000).as_bytes())]).file("a", b"x").end()), TarError::Invalid { .. }));
    assert!(matches!(refused(&new().pax(&[("linkpath", &[b'a'; 5000])]).link(b'2', "a", "x").end()), TarError::TooLarge { .. }));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let old = |map: &[(u64, u64)], real: u64, stored: &[u8]| {
        let mut tar = new().header(b"s", b'S', b"", stored.len() as u64);
        for (at, (offset, len)) in map.iter().enumerate() {
            tar.0[386 + 24 * at..][..24].copy_from_slice(format!("{offset:011o}\0{len:011o}\0").as_bytes());
        }
        tar.0[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&tar.0[..512]);
        header.set_cksum();
        tar.0[..512].copy_from_slice(header.as_bytes());
        tar.data(stored).end()
    };
    let found = tree(&old(&[(4, 3), (100, 0)], 100, b"abc"));
    assert_eq!(file(&found, "s").iter().filter(|byte| **byte != 0).count(), 3);
    for tar in [old(&[(4, 3)], 5, b"abc"), old(&[(4, 3), (5, 1)], 100, b"abcd"), old(&[(4, 3)], 100, b"abcd"), old(&[(4, 3)], 100, b"ab")] {
        assert!(matches!(refused(&tar), TarError::Invalid { .. }));
    }
    let pax = |records: &[(&str, &[u8])], stored: &[u8]| refused(&new().pax(records).file("s", stored).end());
    assert!(matches!(pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")], b"1\n0\n"), TarError::Invalid { .. }));
    assert!(matches!(
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")], b"99999999999\n"),
        TarError::TooLarge { .. } | TarError::Invalid { .. }
    ));
    assert!(matches!(pax(&[("GNU.sparse.major", b"1")], &[b'0'; 512]), TarError::Invalid { .. }));
    assert!(matches!(pax(&[("GNU.sparse.realsize", b"4611686018427387905")], b""), TarError::TooLarge { .. }));
    assert!(matches!(pax(&[("GNU.sparse.map", b"1,2,3"), ("GNU.sparse.size", b"9")], b""), TarError::Invalid { .. }));
    assert!(matches!(pax(&[("GNU.sparse.numbytes", b"1")], b""), TarError::Invalid { .. }));
}

#[test]
fn a_stream_that_fails_is_an_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let tar = new().file("a", &Rng(1).bytes(100_000)).end();
    let result = import_tar(tar[..50_000].chain(Failing), &ImportOptions::default(), &MemoryStore::new(), &());
    assert!(matches!(result, Err(ImportError::Tar(TarError::Read { .. }))), "{result:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn damage_never_panics(seed: u64, flips in 1usize..6) {
        let content = Rng(9).bytes(3000);
        let map = b"2\n0\n512\n1024\n512\n";
        let sparse = [&map[..], &[0; 512 - 17], &content[..1024]].concat();
        let base = new().directory("d").file("d/a", &content).pax(&[("path", b"d/b"), ("mtime", b"1.5")]).file("x", b"y").link(b'1', "h", "d/a").link(b'2', "s", "d")
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"d/sp"), ("GNU.sparse.realsize", b"2000")]).file("sp", &sparse);
        let mut tar = base.end();
        let mut rng = Rng(seed);
        for _ in 0..flips {
            let at = rng.below(tar.len() as u64) as usize;
            tar[at] ^= 1 << rng.below(8);
        }
        // Repair checksums, so that the damage gets past them.
        for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        match import_tar(&tar[..], &ImportOptions { threads: 1, ..ImportOptions::default() }, &MemoryStore::new(), &()) {
            Ok(_) | Err(ImportError::Tar(_)) => {}
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn oci_whiteouts_are_only_taken_where_asked_for() {
    let tar = new()
        .file("a/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"1")
        .directory("d")
        .file("a/.wh..wh.plnk", b"")
        .file("e/x", b"x")
        .file(".wh.e", b"")
        .end();
    let store = MemoryStore::new();
    let read = |oci_whiteouts| read_back(&store, import_tar(&tar[..], &ImportOptions { oci_whiteouts, ..ImportOptions::default() }, &store, &()).unwrap().root);
    let found = read(true);
    assert_eq!(names(&found), ["/", "/a", "/d", "/e", "/a/gone", "/d/new", "/e/x"]);
    assert_eq!(found[&path("a/gone")].kind, FoundKind::Other(Kind::Whiteout));
    assert_eq!(found[&path("d")].kind, FoundKind::Other(Kind::Directory { opaque: true }));
    assert_eq!(found[&path("e")].kind, FoundKind::Other(Kind::Directory { opaque: true }));
    assert_eq!(names(&read(false)).len(), 10);
}

#[test]
fn a_layer_is_written_with_what_it_hides() {
    let tar = new()
        .file("a/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"1")
        .file(".wh.e", b"")
        .file("e/x", b"x")
        .file(".wh.top", b"")
        .file("plain", b"content")
        .end();
    let store = MemoryStore::new();
    let options = ImportOptions { oci_whiteouts: true, ..ImportOptions::default() };
    let root = import_tar(&tar[..], &options, &store, &()).unwrap().root;
    let layer = || {
        let mut out = Vec::new();
        export_layer(root, &store, &mut out, &()).unwrap();
        out
    };
    let written = layer();
    assert_eq!(import_tar(&written[..], &options, &store, &()).unwrap().root, root);
    assert_eq!(names(&tree(&written)), ["/", "/.wh.top", "/a", "/d", "/e", "/plain", "/a/.wh.gone", "/d/.wh..wh..opq", "/d/new", "/e/.wh..wh..opq", "/e/x"]);
    // Digests that container tools have seen rest on these bytes: they never change.
    assert_eq!(Digest::of(&written).to_hex(), "97cf62f312b35dd9f42eae31423c0137d39644b9b9b4952ad8240c4e72c88750");
    assert_eq!(layer(), written);
}

#[test]
fn only_a_layer_may_lack_its_end() {
    let tar = new().file("one", b"1").file("two", b"22").end();
    let store = MemoryStore::new();
    let import = |len: usize, oci_whiteouts| import_tar(&tar[..len], &ImportOptions { oci_whiteouts, ..ImportOptions::default() }, &store, &());
    let whole = import(tar.len(), false).unwrap().root;
    let last = tar.chunks(512).rposition(|block| block[0] != 0).unwrap() * 512;
    for len in [last + 512, last + 2] {
        assert_eq!(import(len, true).unwrap().root, whole, "{len}");
        assert!(import(len, false).is_err(), "{len}");
    }
    for len in [last + 1, last - 100, 512] {
        assert!(import(len, true).is_err(), "{len}");
    }
}

#[test]
fn an_archive_that_decompresses_without_end_is_refused() {
    let tar = new().file("zeros", &vec![0; 3 << 20]).end();
    let store = MemoryStore::new();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&tar).unwrap();
    let packed = packed.finish().unwrap();
    for bytes in [&tar, &packed] {
        let import = |max_tar_bytes| import_tar(&bytes[..], &ImportOptions { max_tar_bytes, ..ImportOptions::default() }, &store, &());
        assert!(matches!(import(2 << 20), Err(ImportError::Tar(TarError::TooLong { .. }))));
        assert!(import(4 << 20).is_ok());
    }
}

#[test]
fn layers_are_merged_as_overlayfs_would() {
    let store = MemoryStore::new();
    let layer = |tar: Builder| import_tar(&tar.end()[..], &ImportOptions { oci_whiteouts: true, ..ImportOptions::default() }, &store, &()).unwrap().root;
    let lower = layer(
        new()
            .file("keep", b"1")
            .file("replaced", b"1")
            .file("gone", b"1")
            .file("gone dir/x", b"1")
            .file("opaque/old", b"1")
            .file("was dir/x", b"1")
            .file("both/low", b"1")
            .file("was file", b"1"),
    );
    let middle = layer(
        new()
            .file(".wh.gone", b"")
            .file(".wh.gone dir", b"")
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/new", b"2")
            .file("was dir", b"2")
            .file("both/mid", b"2")
            .file("was file/x", b"2"),
    );
    let upper = layer(new().file("replaced", b"3").file("gone dir/y", b"3").file("was dir/z", b"3").file("both/.wh.low", b""));
    let found = tree(&export(&store, &[lower, middle, upper]));
    let expected = [
        "/",
        "/both",
        "/gone dir",
        "/keep",
        "/opaque",
        "/replaced",
        "/was dir",
        "/was file",
        "/both/mid",
        "/gone dir/y",
        "/opaque/new",
        "/was dir/z",
        "/was file/x",
    ];
    assert_eq!(names(&found), expected);
    assert_eq!(file(&found, "replaced"), b"3");
    assert_eq!(export(&store, &[lower, middle, upper]), export(&store, &[lower, middle, upper]));
    assert_eq!(tree(&export(&store, &[])).len(), 1);
}

#[test]
fn a_tar_is_placed_below_at() {
    let store = MemoryStore::new();
    let options = ImportOptions { at: path("opt/app"), owner: Some((1, 2)), ..ImportOptions::default() };
    let found = read_back(&store, import_tar(&new().directory("./").file("x", b"1").link(b'1', "y", "x").end()[..], &options, &store, &()).unwrap().root);
    assert_eq!(names(&found), ["/", "/opt", "/opt/app", "/opt/app/x", "/opt/app/y"]);
    assert_eq!((found[&path("opt/app/y")].meta.gid, found[&path("opt")].meta.gid), (2, 0));
    let dir = tempfile::tempdir().unwrap();
    every_kind(dir.path());
    let root = import_directory(dir.path(), &options, &store, &()).unwrap().root;
    let plain_root = import(dir.path(), &store).root;
    assert_eq!(import_tar(&export(&store, &[plain_root])[..], &options, &store, &()).unwrap().root, root);
}

#[test]
fn a_damaged_store_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x"), b"1").unwrap();
    let store = MemoryStore::new();
    let root = import(dir.path(), &store).root;
    let error = export_tar(&[root, Digest::of(b"missing")], &store, Vec::new(), &()).unwrap_err();
    assert!(matches!(error, chunker::ExportError::Source(_)), "{error:?}");
    let chunk = Digest::of(b"1");
    assert!(matches!(export_tar(&[chunk], &store, Vec::new(), &()), Err(chunker::ExportError::Object { digest, .. }) if digest == chunk));
}

#[test]
fn sparse_files_of_many_pieces_survive() {
    let dir = tempfile::tempdir().unwrap();
    let mut sparse = File::create(dir.path().join("sparse")).unwrap();
    for at in 0..300u64 {
        sparse.seek(SeekFrom::Start(at * 65536)).unwrap();
        sparse.write_all(&Rng(at).bytes(100)).unwrap();
    }
    symlink("sparse", dir.path().join("link")).unwrap();
    let store = MemoryStore::new();
    let root = import(dir.path(), &store).root;
    assert_eq!(import_bytes(&export(&store, &[root]), &store).root, root);
    let list = |tool: &Path| Command::new(tool).args(["c", "--format", "gnu", "--sparse", "--numeric-owner", "-C"]).arg(dir.path()).arg(".").output();
    match list(Path::new("tar")) {
        Ok(output) => assert_eq!(rough(tree(&output.stdout)), rough(read_back(&store, root))),
        Err(error) => eprintln!("skipped: tar cannot be run: {error}"),
    }
}

use super::*;
use std::io::Write;

fn tar(files: &[(&str, &str, u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        let (kind, link) = match content.split_once("-> ") {
            Some(("", target)) => (tar::EntryType::Symlink, Some(target)),
            Some(("=", target)) => (tar::EntryType::Link, Some(target)),
            _ if path.ends_with('/') => (tar::EntryType::Directory, None),
            _ => (tar::EntryType::Regular, None),
        };
        header.set_entry_type(kind);
        if let Some(target) = link {
            header.set_size(0);
            builder.append_link(&mut header, path, target).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = b"!<arch>\n".to_vec();
    for (name, content) in members {
        writeln!(file, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100_644, content.len()).unwrap();
        file.extend_from_slice(content);
        file.extend((content.len() % 2 == 1).then_some(b'\n'));
    }
    file
}

fn control(name: &str) -> Vec<u8> {
    let text = format!("Package: {name}\nVersion: 1:1.0-2\nArchitecture: amd64\nDepends: libc6\nMaintainer: A <a@example.org>\nDescription: a thing\n");
    tar(&[("./", "", 0o755), ("./control", &text, 0o644), ("./conffiles", "/etc/thing.conf\n", 0o644), ("./postinst", "#!/bin/sh\n", 0o755)])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn package(folder: &Path, name: &str, files: &[(&str, &str, u32)]) -> Package {
    let path = folder.join(format!("{name}.deb"));
    let data = zstd::encode_all(&tar(files)[..], 3).unwrap();
    std::fs::write(&path, ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &gzip(&control(name))), ("data.tar.zst", &data)])).unwrap();
    Package::open(&path).unwrap()
}

/// Merges packages, and lists what the archive then has: path, and content or target.
fn merged(packages: &[Package]) -> Result<(Merged, Vec<(String, String)>)> {
    let mut out = Vec::new();
    let mut merge = Merge::new(&mut out);
    for (number, package) in packages.iter().enumerate() {
        merge.add(number, package.data()?)?;
    }
    let merged = merge.finish()?;
    let mut entries = tar_entries::Entries::new(&out[..]);
    let mut found = Vec::new();
    while let Some(entry) = entries.next_entry()? {
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entries.body(), &mut content)?;
        let shown = entry.link.map_or(content, |link| format!("-> {}", String::from_utf8_lossy(&link)));
        found.push((String::from_utf8_lossy(&entry.path).into_owned(), shown));
    }
    Ok((merged, found))
}

#[test]
fn packages_become_one_archive() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("./usr/share/{}file", "long-name/".repeat(20));
    let target = format!("-> ../{}", "far/".repeat(40));
    let low = package(
        folder.path(),
        "low",
        &[
            ("./lib/", "", 0o755),
            ("./lib/x/lib.so", "low", 0o644),
            ("./usr/share/both", "low", 0o644),
            ("./usr/share/dir/", "", 0o755),
            ("./bin/low", "#!", 0o755),
        ],
    );
    let high = package(
        folder.path(),
        "high",
        &[
            ("./usr/share/both", "high", 0o644),
            ("./usr/share/dir/", "", 0o755),
            ("./usr/bin/high", "#!", 0o755),
            ("./usr/bin/data", "x", 0o644),
            ("./usr/bin/hard", "=-> ./bin/low", 0o755),
            ("./usr/lib/link", "-> ./a/../b/", 0o777),
            ("./usr/lib/far", &target, 0o777),
            (&long, "deep", 0o644),
        ],
    );
    assert_eq!(low.control.scripts, ["postinst"]);
    assert_eq!(low.control.conffiles, ["/etc/thing.conf"]);
    let packages = [low, high];
    let (merged, found) = merged(&packages).unwrap();
    let get = |path: &str| found.iter().rev().find(|(name, _)| name.trim_end_matches('/') == path).map(|(_, content)| content.as_str());
    assert_eq!((get("usr/lib/x/lib.so"), get("usr/share/both"), get("usr/bin/low")), (Some("low"), Some("high"), Some("#!")));
    assert_eq!((get("usr/bin/hard"), get("usr/lib/link")), (Some("-> usr/bin/low"), Some("-> ./a/../b/")), "links stay byte for byte");
    assert_eq!((get("usr/lib/far"), get(&long[2..])), (Some(target.as_str()), Some("deep")));
    assert!(get("lib").is_none() && get("bin").is_none(), "a folder there would hide the host's link");
    assert_eq!(merged.conflicts, [("/usr/share/both".to_owned(), vec![0, 1])], "folders are no conflict");
    let programs: Vec<&str> = merged.programs.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(programs, ["/usr/bin/hard", "/usr/bin/high", "/usr/bin/low"]);
    assert_eq!(startup_file(&merged, &packages, 1), Some(vec!["/usr/bin/high".to_owned()]));
    assert_eq!(startup_file(&merged, &packages, 0), Some(vec!["/usr/bin/low".to_owned()]));
}

#[test]
fn links_and_folders_of_one_name_are_as_dpkg_leaves_them() {
    let folder = tempfile::tempdir().unwrap();
    let low = package(
        folder.path(),
        "low",
        &[
            ("./usr/share/doc/low/", "", 0o755),
            ("./usr/share/doc/low/file", "low", 0o644),
            ("./usr/share/doc/link", "-> ../doc/low", 0o777),
            ("./usr/share/up", "-> ../../../../../usr/share/doc/link", 0o777),
            ("./usr/share/round", "-> round", 0o777),
            ("./usr/share/top", "-> /", 0o777),
        ],
    );
    let high = package(
        folder.path(),
        "high",
        &[
            ("./usr/share/doc/low", "-> elsewhere", 0o777),
            ("./usr/share/doc/link/", "", 0o755),
            ("./usr/share/doc/link/more", "more", 0o644),
            ("./usr/share/up/again", "again", 0o644),
            ("./usr/share/up/hard", "=-> ./usr/share/doc/link/more", 0o644),
            ("./usr/share/top/bin/x", "x", 0o644),
        ],
    );
    let round = package(folder.path(), "round", &[("./usr/share/round/x", "x", 0o644)]);
    let packages = [low, high, round];
    let (_, found) = merged(&packages[..2]).unwrap();
    let get = |path: &str| found.iter().filter(|(name, _)| name.trim_end_matches('/') == path).map(|(_, content)| content.as_str()).collect::<Vec<_>>();
    assert_eq!(get("usr/share/doc/low"), [""], "a link does not take a folder's place");
    assert_eq!(get("usr/share/doc/link"), ["-> ../doc/low"], "nor a folder a link's");
    assert_eq!((get("usr/share/doc/low/more"), get("usr/share/doc/low/again")), (vec!["more"], vec!["again"]));
    assert_eq!(get("usr/share/doc/low/hard"), ["-> usr/share/doc/low/more"]);
    assert_eq!(get("usr/bin/x"), ["x"], "what leads through the root is placed as any path");
    assert!(format!("{:#}", merged(&packages).unwrap_err()).contains("lead to each other"));
}

#[test]
fn a_menu_entry_names_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let entry = "# menu\n[Desktop Entry]\nType=Application\nName=Tool\nExec=/usr/lib/tool/run \"a b\" --x %U 100%%\n\n[Desktop Action New]\nExec=other\n";
    let hidden = "[Desktop Entry]\nType=Application\nNoDisplay=true\nExec=hidden\n";
    let start = |name: &str, files: &[(&str, &str, u32)]| {
        let packages = [package(folder.path(), name, files)];
        startup_file(&merged(&packages).unwrap().0, &packages, 0)
    };
    let command = Some(["/usr/lib/tool/run", "a b", "--x", "100%"].map(str::to_owned).to_vec());
    assert_eq!(start("one", &[("./usr/share/applications/x.desktop", entry, 0o644), ("./usr/share/applications/h.desktop", hidden, 0o644)]), command);
    let two =
        [("./usr/share/applications/a.desktop", "[Desktop Entry]\nType=Application\nExec=a\n", 0o644), ("./usr/share/applications/two.desktop", entry, 0o644)];
    assert_eq!(start("two", &two), command, "of several the one with the package's name");
    assert_eq!(start("three", &two), None, "which of several is meant cannot be known");
    assert_eq!(start("four", &[("./usr/bin/five", "#!", 0o755), ("./usr/bin/four", "no program", 0o644)]), None);
    assert_eq!(start("game", &[("./usr/games/game", "#!", 0o755)]), Some(vec!["/usr/games/game".to_owned()]));
}

#[test]
fn damage_is_an_error_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.deb");
    let (control, data) = (gzip(&control("thing")), gzip(&tar(&[("./usr/bin/thing", &"x".repeat(5000), 0o755)])));
    let whole = ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.gz", &data)]);
    let read = |bytes: &[u8]| -> Result<Vec<(String, String)>> {
        std::fs::write(&path, bytes).unwrap();
        Ok(merged(&[Package::open(&path)?])?.1)
    };
    assert_eq!(read(&whole).unwrap().len(), 1);
    for len in 0..whole.len() {
        // The last byte may be what fills an odd member.
        assert!(read(&whole[..len]).is_err() || len + 1 == whole.len(), "cut at {len} of {}", whole.len());
    }
    let begin = whole.len() - data.len() - data.len() % 2;
    for at in begin..begin + data.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        // Some bits of gzip mean nothing: what comes out is whole then.
        assert!(read(&flipped).map_or(true, |found| found == read(&whole).unwrap()), "flipped at {}", at - begin);
    }
    for (members, says) in [
        (vec![("hello", &b"x"[..])], "debian-binary"),
        (vec![("debian-binary", &b"3.0\n"[..])], "format"),
        (vec![("debian-binary", &b"2.0\n"[..]), ("data.tar.gz", &data)], "control.tar"),
        (vec![("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control)], "data.tar"),
        (vec![("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &data), ("data.tar.gz", &data)], "control"),
        (vec![("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), ("data.tar.bz2", &data)], "bz2"),
        (vec![("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), ("data.tar.xz", &data)], ""),
    ] {
        let error = format!("{:#}", read(&ar(&members)).unwrap_err());
        assert!(error.contains(says), "{says}: {error}");
    }
    let error = read(b"#!/bin/sh\necho not a package\n").unwrap_err();
    assert!(format!("{error:#}").contains("not a Debian package"), "{error:#}");
    let mut huge = whole.clone();
    huge[8 + 48..8 + 58].copy_from_slice(b"9999999999");
    assert!(format!("{:#}", read(&huge).unwrap_err()).contains("cut short"));
}

#[test]
fn hostile_archives_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.deb");
    let with = |data: Vec<u8>| {
        std::fs::write(&path, ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &gzip(&control("thing"))), ("data.tar.gz", &gzip(&data))])).unwrap();
        merged(&[Package::open(&path).unwrap()]).map(|(_, found)| found)
    };
    let raw = |name: &[u8], kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        [header.as_bytes().to_vec(), vec![0; 1024]].concat()
    };
    for name in [&b"../etc/passwd"[..], b"./usr/../../x", b"a/.."] {
        let error = format!("{:#}", with(raw(name, tar::EntryType::Regular, 0)).unwrap_err());
        assert!(error.contains("hostile"), "{error}");
    }
    let name_bomb = raw(b"././@LongLink", tar::EntryType::GNULongName, 1 << 40);
    assert!(format!("{:#}", with(name_bomb).unwrap_err()).contains("name of"));
    let beyond = raw(b"./big", tar::EntryType::Regular, 1 << 40);
    assert!(format!("{:#}", with(beyond).unwrap_err()).contains("cut short"));
    for kind in [tar::EntryType::XHeader, tar::EntryType::GNUSparse, tar::EntryType::XGlobalHeader] {
        assert!(format!("{:#}", with(raw(b"./x", kind, 0)).unwrap_err()).contains("no package has"), "{kind:?}");
    }
    let mut damaged = raw(b"./x", tar::EntryType::Regular, 0);
    damaged[3] ^= 1;
    assert!(format!("{:#}", with(damaged).unwrap_err()).contains("damaged"));
}

#[test]
fn what_is_asked_for_is_a_file_or_a_name() {
    assert_eq!(Asked::parse("hello").unwrap(), Asked::Name("hello".into()));
    assert!(matches!(Asked::parse("x.deb").unwrap(), Asked::File(path) if path.is_absolute()));
    assert!(matches!(Asked::parse("./hello").unwrap(), Asked::File(_)));
    for bad in ["--config-file=x", "-x", "a b", "UPPER", "hello-"] {
        assert!(Asked::parse(bad).unwrap_err().is::<UsageError>(), "{bad}");
    }
}

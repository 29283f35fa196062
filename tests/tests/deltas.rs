//! New versions kept and sent as what differs from the one before, as an ordinary user types it: they cost little, and are whole
//! whatever becomes of the versions that they were compressed against.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration_tests::{Home, TestRegistry};
use serde_json::Value;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(len).collect()
    }
}

type Tree = BTreeMap<String, Vec<u8>>;

/// Something like a program: what does not compress, with an address here and there.
fn program(random: &mut Random, len: usize) -> Vec<u8> {
    random.bytes(len)
}

/// What a new build of it is like: nearly every piece of some KiB has another address in it.
fn rebuilt(program: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = program.to_vec();
    let mut at = random.below(2000);
    while at + 4 < out.len() {
        out[at..at + 4].copy_from_slice(&(random.next() as u32).to_le_bytes());
        at += 1500 + random.below(2000);
    }
    let insert = random.below(out.len());
    out.splice(insert..insert, random.bytes(60));
    out
}

fn first_version(random: &mut Random) -> Tree {
    let mut tree = Tree::new();
    tree.insert("lib/libapp.so".into(), program(random, 1_500_000));
    tree.insert("lib/libsmall.so".into(), program(random, 70_000));
    for number in 0..150 {
        let text: String = (0..20 + random.below(200)).map(|line| format!("{line}: value = {}\n", random.below(1000))).collect();
        tree.insert(format!("share/d{}/module{number}.py", number % 9), text.into_bytes());
    }
    tree.insert("empty".into(), Vec::new());
    tree
}

fn next_version(tree: &Tree, random: &mut Random) -> Tree {
    let mut next = tree.clone();
    let names: Vec<String> = tree.keys().cloned().collect();
    for name in &names {
        let content = &tree[name];
        match random.below(12) {
            0 if name.ends_with(".py") => drop(next.remove(name)),
            1 if name.ends_with(".py") => {
                next.remove(name);
                next.insert(format!("{name}.renamed"), content.clone());
            }
            _ if name.ends_with(".so") => drop(next.insert(name.clone(), rebuilt(content, random))),
            2..=5 if !content.is_empty() => {
                let mut changed = content.clone();
                let at = random.below(changed.len());
                changed.splice(at..at, format!("# {}\n", random.below(100)).into_bytes());
                next.insert(name.clone(), changed);
            }
            6 => drop(next.insert(format!("new/{}", random.next()), random.bytes(3000))),
            _ => {}
        }
    }
    next
}

/// Makes the folder `app` what the tree says.
fn write(home: &Home, tree: &Tree) -> PathBuf {
    let folder = home.path().join("app");
    let _ = fs::remove_dir_all(&folder);
    for (name, content) in tree {
        home.file(&format!("app/{name}"), content);
    }
    folder
}

fn import(home: &Home, tree: &Tree, name: &str, more: &[&str]) -> Value {
    let folder = write(home, tree);
    let words = ["import", "dir", folder.to_str().unwrap(), "--name", name, "--format", "json"];
    home.turbo(words.iter().chain(more)).ok().json()["result"].clone()
}

fn transfer(home: &Home, what: &str, name: &str) -> Value {
    let result = home.turbo([what, name, "--format", "json"]).ok().json()["result"].clone();
    if result.is_array() { result[0].clone() } else { result }
}

/// All that the image holds, from what is here.
#[track_caller]
fn check(home: &Home, name: &str, tree: &Tree) {
    let out = home.path().join("out");
    home.turbo(["pull", name, "--offline", "--overwrite", "--checkout", out.to_str().unwrap()]).ok();
    let mut found = Tree::new();
    let mut pending = vec![out.clone()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => drop(found.insert(path.strip_prefix(&out).unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), tree.keys().collect::<Vec<_>>(), "{name}");
    for (path, content) in tree {
        assert!(found[path] == *content, "{path} of {name}");
    }
}

fn packs(home: &Home) -> Vec<PathBuf> {
    fs::read_dir(home.store().join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn delta_frames(pack: &Path) -> usize {
    let bytes = fs::read(pack).unwrap();
    let index = layer_format::pack::read_index(&bytes).unwrap();
    index.frames.iter().filter(|frame| !layer_format::frame::delta::bases(&bytes[frame.offset as usize..]).unwrap().is_empty()).count()
}

#[test]
fn a_new_version_costs_what_differs_and_stays_whole_without_the_old_one() {
    let random = &mut Random(1);
    let one = first_version(random);
    let two = next_version(&one, random);
    let registry = TestRegistry::start();
    let (builder, user, fresh) = (Home::new(registry.url()), Home::new(registry.url()), Home::new(registry.url()));
    import(&builder, &one, "tools/app:1", &[]);
    transfer(&builder, "push", "tools/app:1");
    transfer(&user, "pull", "tools/app:1");
    let plain = {
        let home = Home::offline();
        import(&home, &one, "tools/app:1", &[]);
        let plain = import(&home, &two, "tools/app:2", &["--no-delta"])["stored_bytes"].as_u64().unwrap();
        assert!(packs(&home).iter().all(|pack| delta_frames(pack) == 0));
        plain
    };
    let stored = import(&builder, &two, "tools/app:2", &[])["stored_bytes"].as_u64().unwrap();
    assert!(stored * 5 < plain, "{stored} of {plain}");
    let sent = transfer(&builder, "push", "tools/app:2")["bytes"].as_u64().unwrap();
    assert!(sent < stored * 11 / 10, "{sent} sent, {stored} stored");
    let pulled = transfer(&user, "pull", "tools/app:2")["bytes"].as_u64().unwrap();
    assert!(pulled < stored * 12 / 10, "{pulled} pulled, {stored} stored");
    assert!(packs(&user).iter().any(|pack| delta_frames(pack) > 0));
    check(&user, "tools/app:2", &two);
    // Who has nothing gets it, and needs the old version for nothing.
    transfer(&fresh, "pull", "tools/app:2");
    check(&fresh, "tools/app:2", &two);
    assert!(packs(&fresh).iter().all(|pack| delta_frames(pack) == 0));
    for home in [&builder, &user] {
        home.turbo(["rmi", "tools/app:1"]).ok();
        home.turbo(["gc"]).ok();
        home.turbo(["verify"]).ok();
        check(home, "tools/app:2", &two);
        home.turbo(["gc", "--repack", "--dead", "0"]).ok();
        home.turbo(["verify"]).ok();
        check(home, "tools/app:2", &two);
    }
}

#[test]
fn any_versions_in_any_order_are_whole() {
    for seed in [3, 4] {
        let random = &mut Random(seed);
        let home = Home::offline();
        let mut latest = first_version(random);
        let mut kept: BTreeMap<String, Tree> = BTreeMap::new();
        for number in 1..=6 {
            let name = format!("tools/app:{number}");
            if random.below(3) == 0 {
                // Killed anywhere: the next import goes on from what is there.
                let folder = write(&home, &latest);
                let mut killed = home.command(["import", "dir", folder.to_str().unwrap(), "--name", &name]).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(random.below(60) as u64));
                killed.kill().unwrap();
                killed.wait().unwrap();
            }
            let more: &[&str] = if number > 2 && random.below(3) == 0 { &["--no-delta"] } else { &[] };
            import(&home, &latest, &name, more);
            kept.insert(name, latest.clone());
            latest = next_version(&latest, random);
            if kept.len() > 1 && random.below(2) == 0 {
                let name = kept.keys().nth(random.below(kept.len())).unwrap().clone();
                kept.remove(&name);
                home.turbo(["rmi", &name]).ok();
            }
            match random.below(4) {
                0 => drop(home.turbo(["gc"]).ok()),
                1 => drop(home.turbo(["gc", "--repack", "--dead", "5"]).ok()),
                2 => fs::remove_dir_all(home.store().join("index")).unwrap(),
                _ => {}
            }
        }
        home.turbo(["verify"]).ok();
        for (name, tree) in &kept {
            check(&home, name, tree);
        }
    }
}

#[test]
fn damage_in_what_a_delta_needs_is_found_and_fetched_again() {
    let random = &mut Random(7);
    let one = first_version(random);
    let two = next_version(&one, random);
    let registry = TestRegistry::start();
    let (builder, user) = (Home::new(registry.url()), Home::new(registry.url()));
    for (tree, name) in [(&one, "tools/app:1"), (&two, "tools/app:2")] {
        import(&builder, tree, name, &[]);
        transfer(&builder, "push", name);
        transfer(&user, "pull", name);
    }
    let base = packs(&user).into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(&base).unwrap();
    for at in (5000..bytes.len() / 2).step_by(200_000) {
        bytes[at] ^= 1;
    }
    fs::write(&base, bytes).unwrap();
    let found = user.turbo(["verify", "--format", "json"]);
    assert_ne!(found.code, Some(0), "{found:?}");
    user.turbo(["verify", "--repair"]);
    for name in ["tools/app:2", "tools/app:1"] {
        transfer(&user, "pull", name);
    }
    check(&user, "tools/app:2", &two);
    check(&user, "tools/app:1", &one);
}

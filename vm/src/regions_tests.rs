//! Plans over a made-up machine.

use std::cell::Cell;

use super::*;
use layer_format::manifest::Attributes;

/// Directories end with `/`; a name of the layers that ends with `!` is an opaque directory, with `-` a tombstone.
#[derive(Default)]
struct Machine {
    layers: Vec<&'static str>,
    sandbox: Vec<&'static str>,
    host: Vec<&'static str>,
    writable: Vec<&'static str>,
    mount_points: Vec<&'static str>,
    questions: Cell<usize>,
}

fn path(text: &str) -> LayerPath {
    LayerPath::from_absolute(text.as_bytes()).unwrap()
}

fn names<'m>(list: &'m [&'static str], directory: &LayerPath) -> impl Iterator<Item = (Vec<u8>, bool)> + 'm {
    let directory = directory.clone();
    list.iter().filter_map(move |text| {
        let mut found = path(text.trim_end_matches(['!', '-']));
        let mut is_dir = text.ends_with(['/', '!']);
        while let Some(parent) = found.parent() {
            if parent == directory {
                return Some((found.name().to_vec(), is_dir));
            }
            (found, is_dir) = (parent, true);
        }
        None
    })
}

fn find(list: &[&'static str], wanted: &LayerPath) -> Option<bool> {
    wanted.parent().map_or(Some(true), |parent| names(list, &parent).find(|(name, _)| name == wanted.name()).map(|(_, is_dir)| is_dir))
}

impl Machine {
    fn virtuals(&self) -> Vec<&'static str> {
        [&self.sandbox[..], &self.layers[..]].concat()
    }

    fn plan(&self, rules: &Rules) -> Vec<(String, Kind)> {
        self.plan_in(rules, &[], "/")
    }

    fn plan_in(&self, rules: &Rules, hidden: &[&str], working_dir: &str) -> Vec<(String, Kind)> {
        let hidden: Vec<LayerPath> = hidden.iter().map(|text| path(text)).collect();
        let regions = plan(rules, &hidden, &path(working_dir), self);
        regions.into_iter().map(|region| (region.path.to_string(), region.kind)).collect()
    }
}

impl Surroundings for Machine {
    fn virtual_at(&self, wanted: &LayerPath) -> Virtual {
        self.questions.set(self.questions.get() + 1);
        let all = self.virtuals();
        let closed = all.iter().filter_map(|text| text.strip_suffix('!')).any(|opaque| wanted.starts_with(&path(opaque)));
        match find(&all, wanted) {
            Some(true) => Virtual::Directory { closed },
            Some(false) => Virtual::Other,
            None if closed => Virtual::Other,
            None => Virtual::Absent,
        }
    }

    fn in_sandbox(&self, wanted: &LayerPath) -> bool {
        find(&self.sandbox, wanted).is_some()
    }

    fn virtual_children(&self, directory: &LayerPath, max: usize) -> Option<BTreeMap<Vec<u8>, bool>> {
        self.questions.set(self.questions.get() + 1);
        let found: BTreeMap<_, _> = names(&self.virtuals(), directory).collect();
        (found.len() <= max).then_some(found)
    }

    fn host_at(&self, wanted: &LayerPath) -> Host {
        self.questions.set(self.questions.get() + 1);
        match find(&self.host, wanted) {
            Some(true) => Host::Directory,
            Some(false) => Host::Other,
            None => Host::Absent,
        }
    }

    fn host_directories(&self, directory: &LayerPath, max: usize) -> Option<Vec<Vec<u8>>> {
        let found: BTreeSet<_> = names(&self.host, directory).filter(|(_, is_dir)| *is_dir).map(|(name, _)| name).collect();
        (found.len() <= max).then(|| found.into_iter().collect())
    }

    fn may_write(&self, directory: &LayerPath) -> bool {
        self.writable.iter().any(|text| directory.starts_with(&path(text)))
    }

    fn is_mount_point(&self, wanted: &LayerPath) -> bool {
        self.mount_points.iter().any(|text| path(text) == *wanted)
    }
}

/// A usual machine: only the home folder belongs to the user.
fn machine() -> Machine {
    Machine {
        layers: vec!["/opt/app/bin/app", "/usr/share/app/"],
        host: vec![
            "/etc/passwd",
            "/etc/ssl/certs/",
            "/home/u/docs/",
            "/home/u/work/src/",
            "/home/u/.config/x/",
            "/home/u/notes",
            "/opt/other/",
            "/usr/bin/sh",
            "/usr/share/doc/",
            "/usr/share/man/",
            "/tmp/",
            "/proc/",
            "/sys/",
            "/dev/shm/",
            "/link",
        ],
        writable: vec!["/home/u", "/tmp"],
        ..Machine::default()
    }
}

fn rules(default: Mode, stated: &[(&str, Mode)]) -> Rules {
    let mut rules = Rules::new(default);
    for (at, mode) in stated {
        rules.state(path(at), *mode);
    }
    rules
}

fn expect(found: &[(String, Kind)], wanted: &[(&str, Kind)]) {
    let wanted: Vec<(String, Kind)> = wanted.iter().map(|(at, kind)| ((*at).to_owned(), *kind)).collect();
    assert_eq!(found, wanted);
}

use Kind::{Bind, Hide, Overlay, Union};

#[test]
fn without_rules_one_overlay_serves_all_and_nothing_is_asked() {
    let machine = machine();
    for mode in [Mode::Full, Mode::WriteCopy] {
        expect(&machine.plan_in(&rules(mode, &[]), &["/home/u/.config/x"], "/home/u"), &[("/", Overlay)]);
    }
    // The host's filesystem tells these two apart by itself.
    expect(&machine.plan(&rules(Mode::Full, &[("/usr", Mode::WriteCopy), ("/usr/share", Mode::Full)])), &[("/", Overlay)]);
    let mut with_file = rules(Mode::WriteCopy, &[]);
    with_file.state_file(path("/etc/passwd"), FileMode::Full);
    with_file.add_attributes(path("/etc"), Attributes { no_sync: true, no_upgrade: true, ..Attributes::default() });
    expect(&machine.plan(&with_file), &[("/", Overlay)]);
    assert_eq!(machine.questions.get(), 0);
}

#[test]
fn merge_below_an_overlay_is_the_hosts_own_directory_unless_something_is_virtual() {
    let mut machine = machine();
    let merge = |at: &'static str| rules(Mode::WriteCopy, &[(at, Mode::Merge)]);
    expect(&machine.plan(&merge("/home/u/docs")), &[("/", Overlay), ("/home/u/docs", Bind)]);
    expect(&machine.plan(&merge("/home/u/new/er")), &[("/", Overlay), ("/home/u/new/er", Union)]);
    expect(&machine.plan(&merge("/opt/app")), &[("/", Overlay), ("/opt/app", Union)]);
    machine.sandbox = vec!["/home/u/docs/"];
    expect(&machine.plan(&merge("/home/u/docs")), &[("/", Overlay), ("/home/u/docs", Union)]);
    // Deleted in the sandbox, or a file there: it is decided where the name is.
    machine.sandbox = vec!["/home/u/docs-"];
    expect(&machine.plan(&merge("/home/u/docs")), &[("/", Overlay), ("/home/u", Union), ("/home/u/.config", Overlay), ("/home/u/work", Overlay)]);
    machine.sandbox.clear();
    let found = machine.plan(&merge("/home/u/notes"));
    expect(&found, &[("/", Overlay), ("/home/u", Union), ("/home/u/.config", Overlay), ("/home/u/docs", Overlay), ("/home/u/work", Overlay)]);
    // Nothing can be made below a file.
    expect(&machine.plan(&merge("/etc/passwd/x")), &[("/", Overlay)]);
    // A rule below needs the union, and the rest stays native.
    let both = rules(Mode::WriteCopy, &[("/home/u", Mode::Merge), ("/home/u/work", Mode::WriteCopy)]);
    expect(&machine.plan(&both), &[("/", Overlay), ("/home/u", Union), ("/home/u/work", Overlay)]);
    // In full as in write-copy.
    expect(&machine.plan(&rules(Mode::Full, &[("/home/u/docs", Mode::Merge)])), &[("/", Overlay), ("/home/u/docs", Bind)]);
}

#[test]
fn in_merge_what_only_the_host_has_is_bound_unless_the_user_may_want_to_rename_it() {
    let mut machine = machine();
    let merge = rules(Mode::Merge, &[]);
    let system = [("/", Union), ("/etc", Bind), ("/home", Bind), ("/tmp", Bind), ("/opt/other", Bind), ("/usr/bin", Bind)];
    let shares = [("/usr/share/doc", Bind), ("/usr/share/man", Bind)];
    let with = |more: &[(&'static str, Kind)]| [&system[..], more, &shares[..]].concat();
    expect(&machine.plan(&merge), &with(&[]));
    // With something virtual in the home folder its directories are mixed, too; only what leads to the working directory
    // or is a mount point on the host is bound.
    machine.layers.push("/home/u/.config/app");
    machine.mount_points = vec!["/home/u/docs"];
    let found = machine.plan_in(&merge, &[], "/home/u/work/src");
    let bound: Vec<&str> = found.iter().filter(|(at, _)| at.starts_with("/home")).map(|(at, _)| at.as_str()).collect();
    assert_eq!(bound, ["/home/u/docs", "/home/u/work"]);
}

#[test]
fn an_opaque_directory_shows_no_host_so_nothing_of_it_is_bound() {
    let mut machine = machine();
    machine.layers = vec!["/usr/share!", "/opt-"];
    let found = machine.plan(&rules(Mode::Merge, &[]));
    assert!(found.iter().all(|(at, _)| !at.starts_with("/usr/share/") && !at.starts_with("/opt")), "{found:?}");
    assert!(found.contains(&("/usr/bin".to_owned(), Bind)));
}

#[test]
fn stricter_directories_below_merge_are_overlays() {
    let machine = machine();
    let found = machine.plan(&rules(Mode::Merge, &[("/opt/app", Mode::Full), ("/etc/ssl", Mode::WriteCopy), ("/opt/nothing", Mode::Full)]));
    for (at, kind) in [("/opt/app", Overlay), ("/etc/ssl", Overlay), ("/opt/other", Bind)] {
        assert!(found.contains(&(at.to_owned(), kind)), "{at} in {found:?}");
    }
    // Full where only the host has something: the union shows nothing there, and no mount is needed.
    assert!(found.iter().all(|(at, _)| at != "/opt/nothing" && at != "/etc"), "{found:?}");
}

#[test]
fn hide_is_mounted_below_overlays_and_left_to_the_union_where_a_listing_could_tell() {
    let mut machine = machine();
    let hide = |default: Mode, at: &'static str| rules(default, &[(at, Mode::Hide)]);
    expect(&machine.plan(&hide(Mode::WriteCopy, "/etc/ssl")), &[("/", Overlay), ("/etc/ssl", Hide)]);
    expect(&machine.plan(&hide(Mode::WriteCopy, "/etc/nothing")), &[("/", Overlay), ("/etc/nothing", Hide)]);
    expect(&machine.plan(&hide(Mode::WriteCopy, "/nowhere/at/all")), &[("/", Overlay)]);
    expect(&machine.plan(&hide(Mode::Full, "/opt/app/bin")), &[("/", Overlay), ("/opt/app/bin", Hide)]);
    expect(&machine.plan(&hide(Mode::WriteCopy, "/dev/shm")), &[("/", Overlay), ("/dev/shm", Hide)]);
    let found = machine.plan(&hide(Mode::Merge, "/home/u/docs"));
    assert!(found.iter().all(|(at, kind)| *kind != Hide && !at.starts_with("/home")), "{found:?}");
    // What is stated below has no effect.
    let below = rules(Mode::WriteCopy, &[("/etc", Mode::Hide), ("/etc/ssl", Mode::Merge)]);
    expect(&machine.plan(&below), &[("/", Overlay), ("/etc", Hide)]);
    // The sandbox's own listing would show it.
    machine.sandbox = vec!["/etc/ssl/"];
    expect(&machine.plan(&hide(Mode::WriteCopy, "/etc/ssl")), &[("/", Overlay), ("/etc", Union)]);
}

#[test]
fn what_the_vm_keeps_for_itself_is_covered_where_it_would_be_bound() {
    let machine = machine();
    let hidden = ["/home/u/.config/x", "/home/u/.config/x/in", "/home/u/nothing", "/etc/nothing"];
    let found = machine.plan_in(&rules(Mode::WriteCopy, &[("/home", Mode::Merge)]), &hidden, "/");
    expect(&found, &[("/", Overlay), ("/home", Bind), ("/home/u/.config/x", Hide)]);
    // In a mixed directory the union leaves it out.
    let found = machine.plan_in(&rules(Mode::Merge, &[]), &["/opt/other", "/usr/share/doc"], "/");
    assert!(found.iter().all(|(at, kind)| *kind != Hide && at != "/opt/other" && at != "/usr/share/doc"), "{found:?}");
}

#[test]
fn rules_for_single_files_take_their_directory_and_nothing_else() {
    let machine = machine();
    for mode in [FileMode::Hide, FileMode::Defaulted] {
        let mut one = rules(Mode::WriteCopy, &[]);
        one.state_file(path("/etc/passwd"), mode);
        expect(&machine.plan(&one), &[("/", Overlay), ("/etc", Union), ("/etc/ssl", Overlay)]);
    }
    let mut hidden = rules(Mode::WriteCopy, &[]);
    hidden.add_attributes(path("/etc/later/x"), Attributes { hidden: true, ..Attributes::default() });
    expect(&machine.plan(&hidden), &[("/", Overlay), ("/etc", Union), ("/etc/ssl", Overlay)]);
    let mut at_root = rules(Mode::Full, &[]);
    at_root.state_file(path("/file"), FileMode::Hide);
    expect(&machine.plan(&at_root), &[("/", Union), ("/opt", Overlay), ("/usr", Overlay)]);
}

#[test]
fn read_only_directories_are_the_unions_with_all_below() {
    let machine = machine();
    let read_only = Attributes { read_only: true, ..Attributes::default() };
    let mut rules = rules(Mode::WriteCopy, &[]);
    rules.add_attributes(path("/opt"), read_only);
    rules.add_attributes(path("/etc/passwd"), read_only);
    expect(&machine.plan(&rules), &[("/", Overlay), ("/etc", Union), ("/opt", Union), ("/etc/ssl", Overlay)]);
    rules.add_attributes(LayerPath::root(), read_only);
    expect(&machine.plan(&rules), &[("/", Union)]);
}

#[test]
fn large_machines_cost_a_bounded_number_of_questions_and_mounts() {
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let mut machine = machine();
    for n in 0..3000 {
        machine.host.push(leak(format!("/usr/share/h{n:04}/")));
    }
    for n in 0..200 {
        machine.layers.push(leak(format!("/usr/share/doc/{n}/v")));
        machine.host.push(leak(format!("/usr/share/doc/{n}/h/")));
    }
    let found = machine.plan(&rules(Mode::Merge, &[]));
    assert!(found.len() <= MAX_MOUNTS + 1 && machine.questions.get() <= 4 * MAX_DIRECTORIES, "{} {}", found.len(), machine.questions.get());
    for n in 0..3000 {
        machine.host.push(leak(format!("/usr/share/i{n:04}/")));
    }
    let found = machine.plan(&rules(Mode::Merge, &[]));
    assert!(found.iter().all(|(at, _)| !at.starts_with("/usr/share/")), "too many to look at");
}

#[test]
fn parents_come_first() {
    let machine = machine();
    let rules = rules(Mode::Merge, &[("/opt", Mode::WriteCopy), ("/opt/app", Mode::Merge), ("/opt/app/bin", Mode::Full), ("/a", Mode::Full)]);
    let found = machine.plan(&rules);
    for (at, (later, _)) in found.iter().enumerate() {
        assert!(found[at + 1..].iter().all(|(other, _)| later == other || !path(later).starts_with(&path(other))), "{found:?}");
    }
    assert!(found.contains(&("/opt/app".to_owned(), Union)) && found.contains(&("/opt/app/bin".to_owned(), Overlay)), "{found:?}");
}

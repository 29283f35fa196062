//! Isolation modes through real mounts: every cell of the table of modes, and what programs do with files in each.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use client_store::LayerView;

#[path = "support/bench.rs"]
mod bench;
#[path = "support/cells.rs"]
mod cells;
#[path = "support/layer.rs"]
mod layer;
#[path = "support/moves.rs"]
mod moves;
#[path = "support/random.rs"]
mod random;
#[path = "support/special.rs"]
mod special;

use bench::{Bench, Case};
use layer::MemoryLayer;

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as Case)),*] };
}

const CASES: &[(&str, Case)] = cases![
    every_cell_of_full,
    every_cell_of_write_copy,
    every_cell_of_merge,
    every_cell_of_hide,
    every_cell_of_a_merge_root,
    every_cell_as_root,
    files_as_programs_use_them,
    saving_by_rename_in_merge,
    moves_between_modes,
    virtual_directories_move_with_open_files,
    merge_of_what_only_the_host_has_is_native,
    merge_of_what_nobody_has_is_made_on_the_host,
    merge_where_the_host_refuses,
    modes_within_modes,
    hidden_names_that_the_sandbox_has,
    the_store_is_out_of_reach,
    hidden_files,
    defaulted_files,
    read_only_files_and_directories,
    rules_for_files_leave_the_rest_native,
    runs_leave_nothing_of_their_own,
    links_and_files_in_place_of_directories,
    names_that_come_and_go_on_the_host,
    random_operations_of_several_processes,
];

fn main() {
    bench::main(CASES, fixtures, |case, args| {
        let path = |at: usize| Path::new(&args[at]);
        match case {
            "first" => cells::first(args[0].parse().unwrap(), path(1)),
            "again" => cells::again(args[0].parse().unwrap(), path(1)),
            "special" => special::all(path(0), args[1] != "merge"),
            "try-lock" => special::try_lock(path(0)),
            "random" => random::inside(path(0), args[1].parse().unwrap(), args[2] == "again"),
            "random-worker" => {
                let model = random::Model::run(args[2].parse().unwrap(), args[1].parse().unwrap(), Some(path(0)));
                model.compare(path(0));
            }
            "open-move" => moves::open_files(path(0)),
            _ => panic!("no case {case}"),
        }
    });
}

/// `none`, or `cells:DIR`, `files:DIR`, `random:DIR`: layers with something in a directory.
fn fixtures(name: &str) -> Vec<Arc<dyn LayerView>> {
    let (kind, dir) = name.split_once(':').unwrap_or((name, ""));
    let mut layer = MemoryLayer::new();
    if kind == "cells" {
        for operation in cells::FILES.into_iter().chain([cells::OVER]) {
            for end in ["v", "b"] {
                layer.file(format!("{dir}/{operation}-{end}"), "virtual");
            }
        }
        layer.file(format!("{dir}/dir-v/v"), "virtual");
        layer.file(format!("{dir}/dir-b/v"), "virtual");
        layer.file(format!("{dir}/gone-v/in"), "virtual");
        layer.file(format!("{dir}/gone-b/in"), "virtual");
    }
    if kind == "files" {
        for path in ["file", "file-2", "file-3", "full/v", "copy/v", "merge/v", "full/dir/v", "copy/dir/v", "merge/dir/v", "merge/deep/er/v"] {
            layer.file(format!("{dir}/{path}"), "virtual");
        }
    }
    if kind == "random" {
        for (process, key, path) in random::all_keys() {
            if random::at_first(process, key).0 {
                layer.file(format!("{dir}/{path}"), "layer");
            }
        }
    }
    vec![Arc::new(layer)]
}

/// Makes the host's side of the cells in `w/m`.
fn make_cells(bench: &Bench) {
    let _ = fs::remove_dir_all(bench.path("w"));
    bench.make_dir("w");
    for operation in cells::FILES.into_iter().chain([cells::OVER]) {
        for end in ["h", "b"] {
            bench.make_file(&format!("w/m/{operation}-{end}"), "host");
        }
    }
    for path in ["dir-h/h", "dir-b/h", "gone-h/in", "gone-b/in"] {
        bench.make_file(&format!("w/m/{path}"), "host");
    }
    bench.fresh_sandbox();
}

/// What a VM needs of the host to run this program.
fn full(bench: &Bench) -> Vec<String> {
    let paths = ["/usr", "/bin", "/lib", "/lib64", &bench.text("run")].map(|path| format!("{path}=write-copy"));
    let options = paths.into_iter().flat_map(|path| ["--path".to_owned(), path]);
    ["--mode".to_owned(), "full".to_owned()].into_iter().chain(options).collect()
}

/// The cells of a mode in `w/m`, with these options besides.
fn check_cells(bench: &Bench, options: &[String], mode: &str) {
    make_cells(bench);
    let dir = bench.text("w/m");
    let fixture = format!("cells:{dir}");
    let path = format!("{dir}={mode}");
    let options: Vec<&str> = options.iter().map(String::as_str).chain(["--path", &path]).collect();
    let before: BTreeMap<String, String> = bench.tree("w/m").into_iter().collect();
    bench.inside(&fixture, &options, "first", &[mode, &dir]);
    bench.inside(&fixture, &options, "again", &[mode, &dir]);
    let after: BTreeMap<String, String> = bench.tree("w/m").into_iter().collect();
    let upper = bench.upper("w/m");
    if mode != "merge" {
        assert_eq!(after, before, "the host was written: {options:?}");
        assert_eq!(upper.is_empty(), mode == "hide", "{upper:?}");
        return;
    }
    let mut wanted = before;
    for (name, content) in [("write-h", "host+"), ("truncate-h", "new"), ("recreate-h", "second"), ("over-h", "saved"), ("make-n", "made")] {
        wanted.insert(name.to_owned(), content.to_owned());
    }
    for (name, content) in [("made-n/deep/file", "made"), ("link-n", "-> make-n"), ("rename-h.new", "host"), ("dir-h/added", "added"), ("dir-b/added", "added")]
    {
        wanted.insert(name.to_owned(), content.to_owned());
    }
    for name in ["made-n", "made-n/deep", "dir-v"] {
        wanted.insert(name.to_owned(), "dir 755".to_owned());
    }
    wanted.insert("dir-v/added".to_owned(), "added".to_owned());
    for name in ["delete-h", "rename-h", "gone-h", "gone-h/in"] {
        wanted.remove(name);
    }
    assert_eq!(after, wanted, "{options:?}");
    assert_eq!(fs::metadata(bench.path("w/m/chmod-h")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(bench.path("w/m/time-h")).unwrap().mtime(), 1000);
    let not_virtual: Vec<_> = upper.iter().filter(|(name, _)| name.contains("-h") || name.contains("-n")).collect();
    assert!(not_virtual.is_empty(), "{not_virtual:?}");
    for (name, content) in [("write-v", "virtual+"), ("write-b", "virtual+"), ("over-b", "saved"), ("delete-b", "-"), ("rename-b", "-")] {
        assert!(upper.contains(&(name.to_owned(), content.to_owned())), "{name} in {upper:?}");
    }
}

fn check_in_all(bench: &Bench, mode: &str) {
    check_cells(bench, &[], mode);
    check_cells(bench, &full(bench), mode);
    check_cells(bench, &["--mode".to_owned(), "merge".to_owned()], mode);
}

fn every_cell_of_full(bench: &Bench) {
    check_in_all(bench, "full");
}

fn every_cell_of_write_copy(bench: &Bench) {
    check_in_all(bench, "write-copy");
}

fn every_cell_of_merge(bench: &Bench) {
    check_in_all(bench, "merge");
}

fn every_cell_of_hide(bench: &Bench) {
    check_in_all(bench, "hide");
}

fn every_cell_of_a_merge_root(bench: &Bench) {
    // The union of the whole tree, even at its root.
    check_cells(bench, &["--mode", "merge", "--attribute", "/nowhere=read-only"].map(str::to_owned), "merge");
}

fn every_cell_as_root(bench: &Bench) {
    for mode in ["full", "write-copy", "merge", "hide"] {
        check_cells(bench, &["--root".to_owned()], mode);
    }
}

fn files_as_programs_use_them(bench: &Bench) {
    for mode in ["full", "write-copy", "merge"] {
        bench.fresh_sandbox();
        let dir = bench.make_dir("w");
        let dir = dir.to_str().unwrap();
        let path = format!("{dir}={mode}");
        bench.inside(&format!("files:{dir}"), &["--path", &path], "special", &[dir, mode]);
        // And where everything is the host's own.
        if mode == "merge" {
            fs::remove_dir_all(dir).unwrap();
            bench.fresh_sandbox();
            for name in ["file", "file-2", "file-3"] {
                bench.make_file(&format!("w/{name}"), "host");
            }
            bench.inside("none", &["--path", &path], "special", &[dir, "native"]);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}

fn saving_by_rename_in_merge(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/file-2", "host");
    bench.make_file("w/host", "host");
    let script = format!("cd {dir}; for f in file file-2 host new; do echo saved > .$f.tmp; mv .$f.tmp $f; test $(cat $f) = saved; done; ls -a");
    let listed = bench.shell(&format!("files:{dir}"), &["--path", &format!("{dir}=merge")], &script);
    assert!(!listed.contains(".tmp"), "{listed}");
    let text = |name: &str| fs::read_to_string(bench.path(name)).unwrap_or_default();
    assert_eq!((text("w/file").as_str(), text("w/file-2").as_str(), text("w/host").as_str(), text("w/new").as_str()), ("", "host", "saved\n", "saved\n"));
    let upper = bench.upper("w");
    assert_eq!(upper, [("file", "saved\n"), ("file-2", "saved\n")].map(|(name, content)| (name.to_owned(), content.to_owned())));
}

fn moves_between_modes(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap().to_owned();
    for (path, content) in [("copy/h", "host"), ("merge/h", "host"), ("copy/hdir/h", "host"), ("merge/hdir/h", "host")] {
        bench.make_file(&format!("w/{path}"), content);
    }
    let options: Vec<String> = ["full", "copy", "merge"].map(|name| format!("{dir}/{name}={}", if name == "copy" { "write-copy" } else { name })).into();
    let options: Vec<&str> = options.iter().flat_map(|path| ["--path", path.as_str()]).collect();
    let fixture = format!("files:{dir}");
    let script = format!(
        "cd {dir}
         mv copy/h merge/copy-h; mv merge/h copy/merge-h; mv full/v merge/full-v; mv merge/v full/merge-v; mv copy/v merge/copy-v
         mv copy/hdir merge/copy-hdir; mv merge/hdir copy/merge-hdir; mv full/dir merge/full-dir; mv merge/dir copy/merge-dir"
    );
    bench.shell(&fixture, &options, &script);
    let script = format!(
        "cd {dir}; cat merge/copy-h copy/merge-h merge/full-v full/merge-v merge/copy-v; echo
         cat merge/copy-hdir/h copy/merge-hdir/h merge/full-dir/v copy/merge-dir/v; echo; ls copy; ls full; ls merge"
    );
    let seen = bench.shell(&fixture, &options, &script);
    let wanted = "hosthostvirtualvirtualvirtual\nhosthostvirtualvirtual\ndir\nmerge-dir\nmerge-h\nmerge-hdir\nmerge-v\ncopy-h\ncopy-hdir\ncopy-v\ndeep\nfull-dir\nfull-v\n";
    assert_eq!(seen, wanted);
    let host: Vec<String> =
        bench.tree("w").into_iter().filter(|(_, content)| !content.starts_with("dir")).map(|(name, content)| name + "=" + &content).collect();
    let wanted = [
        "copy/h=host",
        "copy/hdir/h=host",
        "merge/copy-h=host",
        "merge/copy-hdir/h=host",
        "merge/copy-v=virtual",
        "merge/full-dir/v=virtual",
        "merge/full-v=virtual",
    ];
    assert_eq!(host, wanted);
}

fn virtual_directories_move_with_open_files(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/merge/hdir/h", "host");
    bench.inside(&format!("files:{dir}"), &["--path", &format!("{dir}/merge=merge")], "open-move", &[&format!("{dir}/merge")]);
    assert!(bench.path("w/merge/moved-h/h").exists() && !bench.path("w/merge/hdir").exists());
    assert!(!bench.path("w/merge/moved").exists(), "virtual files do not leak to the host");
}

fn merge_of_what_only_the_host_has_is_native(bench: &Bench) {
    let dir = bench.make_dir("w");
    bench.make_file("w/deep/file", "host");
    let device = fs::metadata(&dir).unwrap().dev();
    let dir = dir.to_str().unwrap();
    let path = format!("{dir}=merge");
    for options in [&["--path", path.as_str()][..], &["--mode", "merge"]] {
        let seen = bench.shell("none", options, &format!("cd {dir}; stat -c %d . deep deep/file | sort -u; echo x > made; rm made; echo y >> deep/file"));
        assert_eq!(seen, format!("{device}\n"), "{options:?}");
    }
    assert_eq!(fs::read_to_string(bench.path("w/deep/file")).unwrap(), "hosty\ny\n");
    assert!(bench.tree("sandbox/upper").is_empty());
}

fn merge_of_what_nobody_has_is_made_on_the_host(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    let path = format!("{dir}/new/er=merge");
    let script = format!("test -z \"$(ls {dir}/new/er)\"; echo made > {dir}/new/er/file; cat {dir}/new/er/file");
    assert_eq!(bench.shell("none", &["--path", &path], &script), "made\n");
    assert_eq!(fs::read_to_string(bench.path("w/new/er/file")).unwrap(), "made\n");
    assert!(bench.tree("sandbox/upper").is_empty(), "{:?}", bench.tree("sandbox/upper"));
    // A look alone makes nothing.
    let other = format!("{dir}/other=merge");
    bench.shell("none", &["--path", &other], &format!("ls {dir}/other"));
    assert!(!bench.path("w/other").exists() && bench.tree("sandbox/upper").is_empty());
}

fn merge_where_the_host_refuses(bench: &Bench) {
    // To another than root most of the host says no, and merge passes that on, whatever serves the directory.
    if bench.user.is_none() && rustix::process::getuid().is_root() {
        return;
    }
    let script = "for f in /etc/turbo-new /usr/share/turbo-new /turbo-new; do if ( : > $f ) 2> /dev/null; then exit 9; fi; done; if rm -f /etc/passwd 2> /dev/null; then exit 8; fi; test -e /etc/passwd";
    for fixture in ["none", "files:/usr/share", "files:/etc"] {
        bench.shell(fixture, &["--mode", "merge"], script);
        bench.fresh_sandbox();
    }
}

fn modes_within_modes(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    let orders = ["merge full merge full", "full merge full merge", "write-copy merge write-copy full", "merge hide merge hide"];
    for order in orders {
        bench.fresh_sandbox();
        let _ = fs::remove_dir_all(bench.path("w/a"));
        bench.make_file("w/a/b/c/d/h", "host");
        let places = ["a", "a/b", "a/b/c", "a/b/c/d"];
        let paths: Vec<String> = places.iter().zip(order.split(' ')).map(|(place, mode)| format!("{dir}/{place}={mode}")).collect();
        let options: Vec<&str> = paths.iter().flat_map(|path| ["--path", path.as_str()]).collect();
        let script: String = places.iter().map(|place| format!("if mkdir -p {dir}/{place} 2> /dev/null; then echo x > {dir}/{place}/new; fi; ")).collect();
        bench.shell(&format!("files:{dir}/a/b/c/d"), &options, &format!("{script} true"));
        for (place, mode) in places.iter().zip(order.split(' ')) {
            let hidden = places.iter().zip(order.split(' ')).any(|(above, mode)| mode == "hide" && place.starts_with(above));
            let on_host = bench.path(&format!("w/{place}/new")).exists();
            assert_eq!(on_host, mode == "merge" && !hidden, "{place} in {order}");
            assert_eq!(bench.upper(&format!("w/{place}")).iter().any(|(name, _)| name == "new"), mode != "merge" && !hidden, "{place} in {order}");
        }
    }
}

fn hidden_names_that_the_sandbox_has(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.shell("none", &[], &format!("mkdir {dir}/secret; echo x > {dir}/secret/file; mkdir {dir}/open; echo y > {dir}/open/file"));
    let path = format!("{dir}/secret=hide");
    let listed = bench.shell(
        "none",
        &["--path", &path],
        &format!("ls {dir}; test ! -e {dir}/secret/file; test ! -e {dir}/secret; ! mkdir {dir}/secret 2> /dev/null; cat {dir}/open/file"),
    );
    assert_eq!(listed, "open\ny\n");
    assert!(bench.upper("w").contains(&("secret/file".to_owned(), "x\n".to_owned())), "it is hidden, not lost");
}

fn the_store_is_out_of_reach(bench: &Bench) {
    let store = bench.make_dir("w/store");
    bench.make_file("w/store/key", "secret");
    bench.make_file("w/beside", "host");
    let (dir, store) = (bench.text("w"), store.to_str().unwrap().to_owned());
    let sandbox = bench.text("sandbox");
    let path = format!("{}=merge", bench.text(""));
    let script = format!(
        "for p in {store} {store}/key {sandbox} {sandbox}/upper {sandbox}/mnt; do if ls $p 2> /dev/null; then exit 9; fi; if cat $p 2> /dev/null; then exit 8; fi; done
         if (echo x > {store}/new) 2> /dev/null; then exit 7; fi
         if rmdir {store} 2> /dev/null || mv {store} {dir}/moved 2> /dev/null; then exit 6; fi
         if grep -q {sandbox}/mnt /proc/self/mountinfo; then exit 5; fi
         cat {dir}/beside"
    );
    for options in [&["--mode", "merge"][..], &["--path", path.as_str()], &[]] {
        let seen = bench.shell("none", &[options, &["--hidden", store.as_str()]].concat(), &script);
        assert_eq!(seen, "host", "{options:?}");
    }
    assert_eq!(fs::read_to_string(bench.path("w/store/key")).unwrap(), "secret");
}

fn hidden_files(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    for name in ["file", "host"] {
        bench.make_file(&format!("w/{name}"), "host");
    }
    for option in ["--file", "--attribute"] {
        bench.fresh_sandbox();
        let kind = if option == "--file" { "hide" } else { "hidden" };
        let (one, two) = (format!("{dir}/file={kind}"), format!("{dir}/host={kind}"));
        let options = [option, one.as_str(), option, two.as_str()];
        let script = format!("cd {dir}; cat file; ls; ls -a | grep -c file");
        assert_eq!(bench.shell(&format!("files:{dir}"), &options, &script), "virtualcopy\nfile-2\nfile-3\nfull\nmerge\n2\n");
        let host = format!("cat {dir}/host 2> /dev/null || echo none");
        // The mode is full and more; the attribute is no mode.
        assert_eq!(bench.shell(&format!("files:{dir}"), &options, &host), if option == "--file" { "none\n" } else { "host" });
        let write = format!("cd {dir}; if (echo + >> file) 2> /dev/null; then echo yes; else echo no; fi; cat file; ls | grep -cx file || true");
        let wanted = if option == "--file" { "yes\nvirtual+\n0\n" } else { "no\nvirtual0\n" };
        assert_eq!(bench.shell(&format!("files:{dir}"), &options, &write), wanted, "{option}");
        assert_eq!(fs::read_to_string(bench.path("w/file")).unwrap(), "host");
    }
}

fn defaulted_files(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/file-2", "host");
    let rules: Vec<String> = ["file", "file-2", "file-3"].map(|name| format!("{dir}/{name}=defaulted")).into();
    let options: Vec<&str> = rules.iter().flat_map(|rule| ["--file", rule.as_str()]).collect();
    let script = format!("cd {dir}; cat file file-2; echo; echo more >> file; echo more >> file-2; rm file-3; test ! -e file-3; ls | grep -c file");
    assert_eq!(bench.shell(&format!("files:{dir}"), &options, &script), "virtualhost\n2\n");
    let text = |name: &str| fs::read_to_string(bench.path(name)).ok();
    assert_eq!((text("w/file"), text("w/file-2"), text("w/file-3")), (Some("virtualmore\n".into()), Some("hostmore\n".into()), None));
    let upper: Vec<_> = bench.upper("w").into_iter().filter(|(name, _)| name.starts_with("file")).collect();
    assert!(upper.is_empty(), "they bypass the sandbox: {upper:?}");
}

fn read_only_files_and_directories(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/full/h", "host");
    let rules = ["file", "full"].map(|name| format!("{dir}/{name}=read-only"));
    for mode in ["write-copy", "merge"] {
        bench.fresh_sandbox();
        let path = format!("{dir}={mode}");
        let options = ["--path", &path, "--attribute", &rules[0], "--attribute", &rules[1]];
        let script = format!(
            "cd {dir}
             for f in file full/v full/h full/dir/v full/new; do if (: >> $f) 2> /dev/null; then echo wrote $f; fi; if rm $f 2> /dev/null; then echo removed $f; fi; done
             if mkdir full/x 2> /dev/null || mv full/v out 2> /dev/null || mv file out 2> /dev/null || mv file-2 full/ 2> /dev/null; then echo changed; fi
             cat file full/v full/h full/dir/v; echo + >> file-2; cat file-2; echo - > copy/new"
        );
        assert_eq!(bench.shell(&format!("files:{dir}"), &options, &script), "virtualvirtualhostvirtualvirtual+\n", "{mode}");
    }
}

fn rules_for_files_leave_the_rest_native(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/beside/h", "host");
    let rule = format!("{dir}/file=hide");
    // What the overlay serves is told by its device number: that of `/`.
    let script = format!(
        "cd {dir}; root=$(stat -c %d /); for d in . beside full; do if test $(stat -c %d $d) = $root; then echo native; else echo union; fi; done; echo x > beside/new; echo x > full/dir/new; rm beside/h; cat beside/new full/dir/new"
    );
    assert_eq!(bench.shell(&format!("files:{dir}"), &["--file", &rule], &script), "union\nnative\nnative\nx\nx\n");
    let upper = bench.upper("w");
    assert!(upper.contains(&("beside/new".into(), "x\n".into())) && upper.contains(&("beside/h".into(), "-".into())), "{upper:?}");
    assert!(bench.path("w/beside/h").exists());
    assert_eq!(
        bench.shell(&format!("files:{dir}"), &["--file", &rule], &format!("ls {dir}/beside {dir}/full/dir | xargs")),
        format!("{dir}/beside: new {dir}/full/dir: new v\n")
    );
}

fn runs_leave_nothing_of_their_own(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/copy/h", "host");
    let (merge, full) = (format!("{dir}=merge"), format!("{dir}/full=full"));
    let script = format!("ls -R {dir} > /dev/null; cat {dir}/full/v {dir}/file");
    for options in [&["--path", merge.as_str(), "--path", full.as_str()][..], &["--mode", "merge", "--path", full.as_str()]] {
        assert_eq!(bench.shell(&format!("files:{dir}"), options, &script), "virtualvirtual");
        assert_eq!(bench.tree("sandbox/upper"), [], "{options:?}");
    }
    // What it used stays, with its parents.
    bench.shell(&format!("files:{dir}"), &["--mode", "merge", "--path", &full], &format!("echo x > {dir}/full/new"));
    assert_eq!(bench.upper("w"), [("full".to_owned(), "dir 755".to_owned()), ("full/new".to_owned(), "x\n".to_owned())]);
}

fn links_and_files_in_place_of_directories(bench: &Bench) {
    let dir = bench.make_dir("w");
    let dir = dir.to_str().unwrap();
    bench.make_file("w/real/h", "host");
    bench.make_file("w/plain", "host");
    std::os::unix::fs::symlink("real", bench.path("w/link")).unwrap();
    // A region named through a link or below a file is none; the run goes on.
    for path in ["link/h", "plain/x", "plain/x/y"] {
        for mode in ["hide", "merge", "full"] {
            bench.fresh_sandbox();
            bench.shell("none", &["--path", &format!("{dir}/{path}={mode}")], &format!("cat {dir}/plain > /dev/null; test -d {dir}/real"));
        }
    }
    // A single file of mode merge is written, and replaced, on the host.
    bench.fresh_sandbox();
    let script = format!("cd {dir}; echo + >> plain; echo beside > new; echo saved > .tmp; mv .tmp real/h; echo saved > .tmp; mv .tmp plain");
    bench.shell("none", &["--path", &format!("{dir}/plain=merge")], &script);
    assert_eq!(fs::read_to_string(bench.path("w/plain")).unwrap(), "saved\n");
    assert_eq!(fs::read_to_string(bench.path("w/real/h")).unwrap(), "host");
    assert!(!bench.path("w/new").exists());
}

fn names_that_come_and_go_on_the_host(bench: &Bench) {
    let dir = bench.make_dir("w");
    bench.make_file("w/sub/old", "host");
    let dir = dir.to_str().unwrap();
    // `old` is seen and `new` is not; once `new` is seen `old` must be gone, from listings as well.
    let script = format!(
        "cd {dir}/sub; cat old; if cat new 2> /dev/null; then exit 9; fi; touch $HOME/ready; n=0; while ! cat new 2> /dev/null; do sleep 0.1; n=$((n+1)); test $n -lt 100; done; n=0; while test -e old; do sleep 0.1; n=$((n+1)); test $n -lt 100; done; ls; echo x > old; cat old"
    );
    let home = bench.make_dir("home");
    let mount = format!("{0}={0}", home.display());
    let script = format!("export HOME={}; {script}", home.display());
    let mut child = bench.command("none", &["--mount", &mount], &["/bin/sh", "-ec", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    while !home.join("ready").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::remove_file(bench.path("w/sub/old")).unwrap();
    bench.make_file("w/sub/new", "new");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hostnewnew\nx\n");
    assert!(!bench.path("w/sub/old").exists());
}

fn random_operations_of_several_processes(bench: &Bench) {
    let new_seed = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000;
    let given = std::env::var("VM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in given.map_or_else(|| vec![1, 2, new_seed()], |seed| vec![seed]) {
        let _ = fs::remove_dir_all(bench.path("w"));
        bench.fresh_sandbox();
        for (process, key, path) in random::all_keys() {
            bench.make_dir(&format!("w/{}", random::DIRECTORIES[key.0]));
            if random::at_first(process, key).1 {
                bench.make_file(&format!("w/{path}"), "host");
            }
        }
        let dir = bench.text("w");
        let paths: Vec<String> = random::DIRECTORIES.iter().map(|name| format!("{dir}/{name}={}", name.rsplit('/').next().unwrap())).collect();
        // The last is merge with virtual content, and has one in it that is not.
        let options: Vec<&str> = paths.iter().flat_map(|path| ["--path", path.as_str()]).collect();
        let fixture = format!("random:{dir}");
        bench.inside(&fixture, &options, "random", &[&dir, &seed.to_string(), "first"]);
        bench.inside(&fixture, &options, "random", &[&dir, &seed.to_string(), "again"]);
        for process in 0..random::PROCESSES {
            random::Model::run(process, seed, None).compare_host(Path::new(&dir));
        }
    }
}

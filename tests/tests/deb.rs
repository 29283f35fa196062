//! `turbo import deb`, with packages that dpkg-deb builds, and one of the distribution if apt can fetch it.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::Home;
use integration_tests::turbo::can_run;
use serde_json::Value;

/// Whether a program is there; if not, says so.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: this machine has no {program}");
    }
    found
}

/// Builds a package with these files, compressed like this, with dpkg's own tool.
fn build(home: &Home, name: &str, compression: &str, fields: &str, files: &[(&str, &str)]) -> PathBuf {
    let tree = home.path().join(format!("build-{name}"));
    let write = |path: &str, content: &str| {
        let path = tree.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write(
        "DEBIAN/control",
        &format!("Package: {name}\nVersion: 1:1.2+x-3\nArchitecture: all\nMaintainer: M <m@example.org>\n{fields}Description: the {name}\n long\n"),
    );
    for (path, content) in files {
        write(path, content);
    }
    let package = home.path().join(format!("{name}.deb"));
    let compression = format!("-Z{compression}");
    let output = Command::new("dpkg-deb").args(["--root-owner-group", &compression, "--build"]).arg(&tree).arg(&package).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    home.give_away(&package);
    package
}

fn import(home: &Home, packages: &[&Path], options: &[&str]) -> Value {
    let packages: Vec<&str> = packages.iter().map(|path| path.to_str().unwrap()).collect();
    home.turbo([&["import", "deb", "--format", "json"], &packages[..], options].concat()).ok().json()["result"].clone()
}

fn inspect(home: &Home, image: &str) -> Value {
    home.turbo(["inspect", image, "--files", "--format", "json"]).ok().json()["result"].clone()
}

#[test]
fn a_package_becomes_an_image_that_starts_its_program() {
    if !has("dpkg-deb") {
        return;
    }
    let home = Home::offline();
    for compression in ["gzip", "xz", "zstd", "none"] {
        let fields = "Homepage: https://example.org\nDepends: libc6\n";
        let files = [
            ("/usr/bin/greeter", "#!/bin/sh\ncat /usr/lib/greeter/text /etc/greeter.conf\n"),
            ("/lib/greeter/text", "hello from below usr\n"),
            ("/etc/greeter.conf", "configured\n"),
            ("/DEBIAN/conffiles", "/etc/greeter.conf\n"),
            ("/DEBIAN/postinst", "#!/bin/sh\nexit 1\n"),
        ];
        let package = build(&home, "greeter", compression, fields, &files);
        let outcome = home.turbo(["import", "deb", package.to_str().unwrap()]).ok();
        for part in ["greeter (postinst)", "/etc/greeter.conf", "depends on libc6"] {
            assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
        }
        assert!(outcome.stdout.contains("greeter:1.2.x-3"), "name and version are the package's: {}", outcome.stdout);
        let report = inspect(&home, "greeter");
        let (manifest, metadata) = (&report["manifest"], &report["manifest"]["metadata"]);
        assert_eq!(manifest["startup_files"][0]["command"], serde_json::json!(["/usr/bin/greeter"]), "{compression}");
        assert_eq!(manifest["architecture"], "any");
        assert_eq!((metadata["title"].as_str(), metadata["version"].as_str()), (Some("greeter"), Some("1:1.2+x-3")));
        assert_eq!((metadata["description"].as_str(), metadata["website"].as_str()), (Some("the greeter"), Some("https://example.org")));
        let paths: Vec<&str> = report["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert!(paths.iter().any(|path| path.ends_with("usr/lib/greeter/text")), "{paths:?}");
        assert!(!paths.iter().any(|path| path.trim_start_matches('/') == "lib"), "a folder /lib would hide the host's link: {paths:?}");
        if can_run() {
            let stdout = home.turbo(["run", "--offline", "--temp", "greeter"]).ok().stdout;
            assert_eq!(stdout, "hello from below usr\nconfigured\n", "{compression}");
        }
    }
}

#[test]
fn several_packages_share_a_layer_and_the_last_wins() {
    if !has("dpkg-deb") {
        return;
    }
    let home = Home::offline();
    let low = build(&home, "low", "xz", "", &[("/usr/share/x/both", "low"), ("/usr/share/x/low", "low"), ("/usr/bin/low", "#!/bin/sh\n")]);
    let high = build(&home, "high", "xz", "", &[("/usr/share/x/both", "high"), ("/usr/bin/tool", "#!/bin/sh\necho tool\n")]);
    let options = ["--name", "a/both:1", "--meta", "title=Both", "--trigger", "t=/usr/bin/low", "--isolate", "/usr/share/x=full", "--architecture", "any"];
    let result = import(&home, &[&high, &low], &options);
    assert_eq!(result["conflicts"], serde_json::json!([["/usr/share/x/both", ["high", "low"]]]));
    assert_eq!(result["packages"][1]["name"], "low");
    let report = inspect(&home, "a/both");
    assert_eq!(report["manifest"]["metadata"]["title"], "Both", "the command line goes before the package");
    assert_eq!(report["manifest"]["startup_files"].as_array().unwrap().len(), 1, "no program has the first package's name: {report}");
    assert_eq!(report["isolation"][0]["mode"], "full");
    import(&home, &[&low, &high], &["--name", "a/other"]);
    assert_eq!(inspect(&home, "a/other")["startup"]["command"], serde_json::json!(["/usr/bin/low"]));
}

#[test]
fn damage_leaves_nothing_behind() {
    if !has("dpkg-deb") {
        return;
    }
    let home = Home::offline();
    let package = build(&home, "thing", "xz", "", &[("/usr/bin/thing", "#!/bin/sh\n"), ("/usr/share/thing/data", &"abc".repeat(100_000))]);
    let whole = std::fs::read(&package).unwrap();
    let temporary = home.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    home.give_away(&temporary);
    let mut flipped = whole.clone();
    let at = whole.len() - 60;
    flipped[at] ^= 0xff;
    let not_xz = [&whole[..whole.len() - 200], &[0; 200][..]].concat();
    for (what, bytes) in [("cut", &whole[..whole.len() / 2]), ("flipped", &flipped), ("overwritten", &not_xz), ("text", b"#!/bin/sh\n"), ("empty", b"")] {
        let damaged = home.file("damaged.deb", bytes);
        let output = home.command(["import", "deb", damaged.to_str().unwrap(), "--name", "a/b"]).env("TMPDIR", &temporary).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{what}: {stderr}");
        assert!(stderr.contains("damaged.deb") && !stderr.contains("panicked"), "{what}: {stderr}");
        assert_eq!(home.turbo(["images", "--format", "json"]).ok().json()["result"], Value::Array(vec![]), "{what}");
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "{what} leaves no temporary file");
    }
    for (arguments, code, says) in [
        (vec!["/no/such.deb"], 125, "/no/such.deb"),
        (vec!["--name", "Not A Name", "x.deb"], 2, "lower case"),
        (vec!["UPPER"], 2, "neither"),
        (vec![], 2, "required"),
    ] {
        let outcome = home.turbo([&["import", "deb"], &arguments[..]].concat());
        assert!(outcome.code == Some(code) && outcome.stderr.contains(says), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn without_apt_a_name_cannot_be_fetched_and_that_is_said() {
    let home = Home::offline();
    let output = home.command(["import", "deb", "hello"]).env("PATH", "/nowhere").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && stderr.contains("apt-get"), "{stderr}");
}

/// Needs apt and a mirror; says so where there is none.
#[test]
fn a_package_of_the_distribution_runs() {
    if !has("apt-get") || !can_run() {
        return;
    }
    let home = Home::offline();
    let probe = home.path().join("probe");
    std::fs::create_dir(&probe).unwrap();
    home.give_away(&probe);
    let fetched = Command::new("apt-get").args(["-qq", "download", "hello"]).current_dir(&probe).output().unwrap();
    if !fetched.status.success() {
        eprintln!("skipped: apt can fetch nothing here: {}", String::from_utf8_lossy(&fetched.stderr));
        return;
    }
    home.turbo(["import", "deb", "hello"]).ok();
    assert_eq!(home.turbo(["run", "--offline", "--temp", "hello"]).ok().stdout, "Hello, world!\n");
    // A small program with libraries that a minimal system lacks; those that are installed stay the host's.
    let outcome = home.turbo(["import", "deb", "--with-dependencies", "cowsay", "--name", "games/cow:1", "--format", "json"]).ok();
    let packages = outcome.json()["result"]["packages"].clone();
    assert_eq!(packages.as_array().unwrap().last().unwrap()["name"], "cowsay", "what it needs lies below: {packages}");
    let local = build(&home, "needs-hello", "xz", "Depends: hello\n", &[("/usr/bin/needs-hello", "#!/bin/sh\nhello\n")]);
    let result = import(&home, &[&local], &["--with-dependencies", "--name", "games/needs-hello:1"]);
    let names: Vec<&str> = result["packages"].as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["hello", "needs-hello"]);
    assert_eq!(home.turbo(["run", "--offline", "--temp", "games/needs-hello"]).ok().stdout, "Hello, world!\n");
    let unknown = home.turbo(["import", "deb", "no-such-package-anywhere"]);
    assert!(unknown.code == Some(125) && unknown.stderr.contains("no-such-package-anywhere"), "{}", unknown.stderr);
}

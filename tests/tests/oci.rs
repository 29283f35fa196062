//! Real container tools against a real registry: push, pull, bit for bit; run with `turbo` what they pushed, and give them what
//! `turbo` pushed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration_tests::turbo::{can_run, own};
use integration_tests::{Docker, Home, TestRegistry, rootfs};
use serde_json::Value;

/// Whether a tool is here; if not, says so. A test that needs it returns.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: this machine has no {tool}; `cargo xtask test` installs it");
    }
    found
}

#[track_caller]
fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).env("HOME", folder).output().expect("the tool runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {} {}", text(&output.stdout), text(&output.stderr));
    output
}

/// A layout `layout:one` with an image of two layers, made by umoci: a shell and its libraries, and a file on top.
fn layout(folder: &Path) -> PathBuf {
    rootfs::build(&folder.join("root"), &["sh", "cat"]);
    std::fs::write(folder.join("root/etc/greeting"), "hello\n").unwrap();
    let noise: Vec<u8> = (0..700_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(folder.join("root/usr/noise"), noise).unwrap();
    std::fs::write(folder.join("more"), "upper\n").unwrap();
    run(folder, "umoci", &["init", "--layout", "layout"]);
    run(folder, "umoci", &["new", "--image", "layout:one"]);
    run(folder, "umoci", &["insert", "--rootless", "--image", "layout:one", "root", "/"]);
    run(folder, "umoci", &["insert", "--rootless", "--image", "layout:one", "more", "/etc/more"]);
    let script = "read x < /etc/greeting; read y < /etc/more; echo $x $y $PWD $FOO";
    run(
        folder,
        "umoci",
        &[
            "config",
            "--image",
            "layout:one",
            "--config.entrypoint",
            "/bin/sh",
            "--config.entrypoint",
            "-c",
            "--config.cmd",
            script,
            "--config.env",
            "FOO=bar",
            "--config.workingdir",
            "/etc",
        ],
    );
    folder.join("layout")
}

/// The digest of the first image of a layout, and whether all blobs that it needs are there, byte for byte as in the other.
fn first_digest(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn blob(layout: &Path, digest: &str) -> Vec<u8> {
    std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap()
}

/// Compares an image of two layouts: manifest, configuration and layers.
#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let digest = first_digest(one);
    assert_eq!(digest, first_digest(other));
    let manifest: Value = serde_json::from_slice(&blob(one, &digest)).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap());
    for digest in layers.chain([manifest["config"]["digest"].as_str().unwrap(), &digest]) {
        assert!(blob(one, digest) == blob(other, digest), "{digest}");
    }
}

#[test]
fn skopeo_pushes_what_turbo_runs_and_pulls_it_again() {
    if !has("skopeo") || !has("umoci") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(folder.path());
    let mut registry = TestRegistry::start();
    let target = format!("docker://{}/tools/hello:1.0", registry.address());
    run(folder.path(), "skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", "oci:layout:one", &target]);
    registry.crash_and_restart();
    run(folder.path(), "skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", &target, "oci:back:one"]);
    assert_same(&layout, &folder.path().join("back"));
    // Into another repository: blobs are mounted.
    let other = format!("docker://{}/tools/again:1.0", registry.address());
    run(folder.path(), "skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", &target, &other]);
    let inspected: Value = serde_json::from_slice(&run(folder.path(), "skopeo", &["inspect", "--tls-verify=false", &other]).stdout).unwrap();
    assert_eq!(inspected["Digest"], first_digest(&layout));
    if can_run() {
        let home = Home::new(registry.url());
        for image in ["tools/hello:1.0", "tools/again"] {
            assert_eq!(home.turbo(["run", image]).ok().stdout, "hello upper /etc bar\n", "{image}");
        }
    }
    run(folder.path(), "skopeo", &["delete", "--tls-verify=false", &target]);
    let gone = Command::new("skopeo").args(["inspect", "--tls-verify=false", &target]).output().unwrap();
    assert!(!gone.status.success());
}

#[test]
fn a_layout_and_an_archive_are_imported() {
    if !has("skopeo") || !has("umoci") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(folder.path());
    let insecure = "--insecure-policy";
    run(folder.path(), "skopeo", &[insecure, "copy", "oci:layout:one", "docker-archive:saved.tar:example.org/hello:1"]);
    run(folder.path(), "skopeo", &[insecure, "copy", "oci:layout:one", "oci-archive:archive.tar:one"]);
    run(folder.path(), "gzip", &["-k", "saved.tar"]);
    own(folder.path());
    for part in ["layout", "saved.tar", "saved.tar.gz", "archive.tar"] {
        run(folder.path(), "chmod", &["-R", "a+rX", part]);
    }
    let home = Home::offline();
    let mut layers = Vec::new();
    for (kind, source) in [
        ("oci", layout.clone()),
        ("oci", folder.path().join("archive.tar")),
        ("docker", folder.path().join("saved.tar")),
        ("docker", folder.path().join("saved.tar.gz")),
    ] {
        home.turbo(["import", kind, source.to_str().unwrap(), "--name", "hello:1"]).ok();
        let shown = home.turbo(["inspect", "hello:1", "--format", "json"]).ok().stdout;
        layers.push(shown.matches("\"root\"").count());
        if can_run() {
            assert_eq!(home.turbo(["run", "hello:1"]).ok().stdout, "hello upper /etc bar\n", "{}", source.display());
        }
    }
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]), "{layers:?}");
    // What is damaged is refused, and what the user says wins.
    let digest = serde_json::from_slice::<Value>(&blob(&layout, &first_digest(&layout))).unwrap()["layers"][0]["digest"].as_str().unwrap().to_owned();
    if can_run() {
        home.turbo(["import", "oci", layout.to_str().unwrap(), "--name", "other", "--startup-file", "/bin/cat /etc/more"]).ok();
        assert_eq!(home.turbo(["run", "other"]).ok().stdout, "upper\n");
    }
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = home.turbo(["import", "oci", layout.to_str().unwrap(), "--name", "refused"]);
    assert_ne!(refused.code, Some(0));
    assert!(!home.turbo(["images"]).stdout.contains("refused"));
}

#[test]
fn podman_and_buildah_push_and_pull() {
    if !has("podman") || !has("buildah") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start();
    std::fs::write(folder.path().join("file"), vec![7u8; 300_000]).unwrap();
    std::fs::write(folder.path().join("Containerfile"), "FROM scratch\nCOPY file /file\nENTRYPOINT [\"/file\"]\n").unwrap();
    let storage = ["--root", "storage", "--runroot", "run", "--storage-driver", "vfs"].map(|part| match part {
        "storage" | "run" => folder.path().join(part).to_str().unwrap().to_owned(),
        part => part.to_owned(),
    });
    let tool = |program: &str, arguments: &[&str]| {
        let all: Vec<&str> = storage.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        Command::new(program).args(all).current_dir(folder.path()).output().unwrap()
    };
    let name = format!("{}/tools/built:1", registry.address());
    let built = tool("buildah", &["build", "--isolation", "chroot", "-t", &name, "."]);
    if !built.status.success() {
        eprintln!("skipped: buildah cannot build here: {}", String::from_utf8_lossy(&built.stderr));
        return;
    }
    let succeeds = |output: Output, what: &str| assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    succeeds(tool("buildah", &["push", "--tls-verify=false", &name]), "buildah push");
    let before = tool("podman", &["image", "inspect", "--format", "{{.Id}}", &name]).stdout;
    succeeds(tool("podman", &["push", "--tls-verify=false", &name, &format!("docker://{}/tools/again:2", registry.address())]), "podman push");
    succeeds(tool("podman", &["rmi", "--all", "--force"]), "podman rmi");
    succeeds(tool("podman", &["pull", "--tls-verify=false", &name]), "podman pull");
    let after = tool("podman", &["image", "inspect", "--format", "{{.Id}}", &name]).stdout;
    assert_eq!(String::from_utf8_lossy(&before), String::from_utf8_lossy(&after));
}

#[test]
fn what_turbo_pushed_is_pulled_by_container_tools() {
    if !has("skopeo") || !has("umoci") {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    home.file("app/bin/hello", "#!/bin/sh\necho hello\n");
    home.file("app/etc/data", vec![b'x'; 500_000]);
    let app = home.path().join("app");
    home.turbo(["import", "dir", app.to_str().unwrap(), "--name", "tools/app:1.0", "--startup-file", "/bin/hello there", "--env", "A=b"]).ok();
    home.turbo(["push", "tools/app:1.0"]).ok();
    let folder = tempfile::tempdir().unwrap();
    let source = format!("docker://{}/tools/app:1.0", registry.address());
    run(folder.path(), "skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", &source, "oci:layout:app"]);
    run(folder.path(), "umoci", &["unpack", "--rootless", "--image", "layout:app", "bundle"]);
    let root = folder.path().join("bundle/rootfs");
    assert_eq!(std::fs::read_to_string(root.join("bin/hello")).unwrap(), "#!/bin/sh\necho hello\n");
    assert_eq!(std::fs::metadata(root.join("etc/data")).unwrap().len(), 500_000);
    let config: Value = serde_json::from_slice(&run(folder.path(), "skopeo", &["inspect", "--config", "--tls-verify=false", &source]).stdout).unwrap();
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/hello", "there"]));
    assert!(config["config"]["Env"].as_array().unwrap().contains(&Value::from("A=b")));
}

#[test]
fn docker_and_containerd_push_what_turbo_runs_and_pull_it_again() {
    let Some(daemon) = Docker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    rootfs::build(&folder.path().join("root"), &["sh", "cat"]);
    std::fs::write(folder.path().join("root/etc/greeting"), "hello\n").unwrap();
    run(folder.path(), "tar", &["-C", "root", "-cf", "root.tar", "."]);
    let registry = TestRegistry::start();
    let name = |rest: &str| format!("{}/{rest}", registry.address());
    let archive = folder.path().join("root.tar");
    daemon.ok(&["import", "-c", r#"ENTRYPOINT ["/bin/sh","-c"]"#, "-c", r#"CMD ["cat /etc/greeting"]"#, archive.to_str().unwrap(), &name("tools/dock:1")]);
    let id = |of: &str| daemon.ok(&["inspect", "--format", "{{.Id}}", of]);
    let pushed = id(&name("tools/dock:1"));
    daemon.ok(&["push", &name("tools/dock:1")]);
    daemon.ok(&["tag", &name("tools/dock:1"), &name("tools/other:2")]);
    assert!(daemon.ok(&["push", &name("tools/other:2")]).contains("Mounted from tools/dock"));
    daemon.ok(&["rmi", &name("tools/dock:1"), &name("tools/other:2")]);
    daemon.ok(&["pull", &name("tools/dock:1")]);
    assert_eq!(id(&name("tools/dock:1")), pushed, "the same configuration, and with it the same layers");
    if can_run() {
        let home = Home::new(registry.url());
        assert_eq!(home.turbo(["run", "tools/dock"]).ok().stdout, "hello\n");
    }
    let socket = daemon.folder().join("exec/containerd/containerd.sock");
    if !socket.exists() || !has("ctr") {
        eprintln!("skipped: docker started no containerd of its own");
        return;
    }
    let ctr = |arguments: &[&str]| run(folder.path(), "ctr", &[&["-a", socket.to_str().unwrap(), "images"], arguments].concat());
    ctr(&["pull", "--plain-http", &name("tools/dock:1")]);
    ctr(&["tag", &name("tools/dock:1"), &name("tools/ctr:1")]);
    ctr(&["push", "--plain-http", &name("tools/ctr:1")]);
    daemon.ok(&["pull", &name("tools/ctr:1")]);
    assert_eq!(id(&name("tools/ctr:1")), pushed);
    // What turbo made runs as an ordinary image, too: docker pulls it.
    let home = Home::new(registry.url());
    home.file("app/hello", "hello\n");
    let app = home.path().join("app");
    home.turbo(["import", "dir", app.to_str().unwrap(), "--name", "tools/ours:1", "--startup-file", "/hello"]).ok();
    home.turbo(["push", "tools/ours:1"]).ok();
    daemon.ok(&["pull", &name("tools/ours:1")]);
    assert_eq!(daemon.ok(&["inspect", "--format", "{{index .Config.Entrypoint 0}}", &name("tools/ours:1")]), "/hello");
}

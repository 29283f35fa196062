//! A registry that asks who is there: `turbo login`, and the logins of container tools, against the real server and its console.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use integration_tests::docker::Docker;
use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, Outcome, TestRegistry, binary, rootfs};
use serde_json::Value;

const PASSWORD: &str = "correct horse battery";

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: this machine has no {tool}; `cargo xtask test` installs it");
    }
    found
}

fn with_input(command: &mut Command, input: &str) -> Outcome {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends").into()
}

/// `turbo-registry` on the server's console.
#[track_caller]
fn console(registry: &TestRegistry, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(binary("turbo-registry"));
    command.args(arguments).arg("--data").arg(registry.data());
    with_input(&mut command, input).ok().stdout
}

/// A registry with credentials, and `alice`, who owns her namespace and may pull and push `tools`.
fn start() -> TestRegistry {
    let registry = TestRegistry::start_with_options(&["--auth", "true"]);
    console(&registry, &["user", "add", "alice"], &format!("{PASSWORD}\n"));
    console(&registry, &["user", "grant", "user:alice", "tools/*", "pull,push"], "");
    registry
}

#[track_caller]
fn login(home: &Home, registry: &TestRegistry, name: &str, password: &str) -> Outcome {
    with_input(&mut home.command(["login", &registry.url(), "--username", name, "--password-stdin"]), password)
}

fn import(home: &Home, name: &str, text: &str) {
    let root = home.path().join("root");
    if !root.exists() {
        rootfs::build(&root, &["sh", "cat"]);
    }
    std::fs::write(root.join("etc/greeting"), text).unwrap();
    home.turbo(["import", "dir", root.to_str().unwrap(), "--name", name, "--startup-file", "/bin/cat /etc/greeting", "--isolate", "/=full"]).ok();
}

#[test]
fn turbo_logs_in_pushes_pulls_and_runs() {
    let registry = start();
    let home = Home::new(registry.url());
    import(&home, "tools/hello:1", "hello\n");
    let refused = home.turbo(["push", "tools/hello:1"]);
    assert_eq!(refused.code, Some(125));
    assert!(refused.stderr.contains(&format!("turbo login {}", registry.url())), "{}", refused.stderr);
    let wrong = login(&home, &registry, "alice", "wrong horse");
    assert!(wrong.code == Some(125) && wrong.stderr.contains("does not know"), "{}", wrong.stderr);
    assert!(login(&home, &registry, "alice", PASSWORD).ok().stdout.contains("as alice"));
    let file = home.path().join(".config/turbo/credentials.toml");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(!kept.contains(PASSWORD) && kept.contains("trk_"), "a login is kept, not the password");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions()) & 0o777, 0o600);
    home.turbo(["push", "tools/hello:1"]).ok();
    home.turbo(["push", "tools/hello:1", "alice/hello:1"]).ok();
    assert_eq!(home.turbo(["push", "tools/hello:1", "other/hello:1"]).code, Some(125));
    assert!(home.turbo(["login", "--show"]).ok().stdout.contains("as alice"));
    let other = Home::new(registry.url());
    login(&other, &registry, "alice", PASSWORD).ok();
    other.turbo(["pull", "alice/hello:1"]).ok();
    if can_run() {
        let fresh = Home::new(registry.url());
        assert_ne!(fresh.turbo(["run", "tools/hello:1"]).code, Some(0), "nobody runs without a login");
        login(&fresh, &registry, "alice", PASSWORD).ok();
        assert_eq!(fresh.turbo(["run", "tools/hello:1"]).ok().stdout, "hello\n");
        // States are the user's, wherever she logs in.
        let saved = fresh.turbo(["save", &session(&fresh), "--format", "json"]).ok().json();
        let state = saved["result"]["state"].as_str().unwrap().trim_start_matches("b3:")[..12].to_owned();
        assert_eq!(other.turbo(["continue", &state]).ok().stdout, "hello\n");
        console(&registry, &["user", "add", "bob"], PASSWORD);
        console(&registry, &["user", "grant", "user:bob", "tools/*", "pull"], "");
        let stranger = Home::new(registry.url());
        login(&stranger, &registry, "bob", PASSWORD).ok();
        // Before he runs the image himself: an untouched container's state is the same for everyone.
        let refused = stranger.turbo(["continue", &state]);
        assert!(refused.code == Some(125) && refused.stderr.contains("there is no state"), "somebody else's state: {}", refused.stderr);
        assert_eq!(stranger.turbo(["run", "tools/hello:1"]).ok().stdout, "hello\n");
    }
    // Logged out, the login is good for nothing any more, wherever it was copied to.
    home.turbo(["logout"]).ok();
    std::fs::write(&file, &kept).unwrap();
    assert_eq!(home.turbo(["push", "tools/hello:1", "alice/hello:2"]).code, Some(125));
    home.turbo(["logout"]).ok();
    assert!(home.turbo(["login", "--show"]).ok().stdout.contains("not logged in"));
    // What was done and refused is in the log.
    let log = console(&registry, &["audit", "--format", "json"], "");
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let noted =
        |who: &str, action: &str, outcome: &str| entries.iter().any(|entry| entry["who"] == who && entry["action"] == action && entry["outcome"] == outcome);
    assert!(noted("console", "user_add", "done") && noted("user:alice", "login", "done") && noted("user:alice", "manifest_put", "done"), "{log}");
    assert!(noted("user:alice", "login", "refused"), "{log}");
    let secret = kept.split('"').find(|part| part.starts_with("trk_")).expect("a secret");
    assert!(!log.contains(PASSWORD) && !log.contains(secret), "no secret is in the log");
}

/// The one session of a home.
fn session(home: &Home) -> String {
    let sessions = home.turbo(["sessions", "--format", "json"]).ok().json();
    let first = sessions["result"].as_array().or_else(|| sessions["result"]["sessions"].as_array()).expect("sessions")[0].clone();
    first["id"].as_str().expect("an id").to_owned()
}

#[test]
fn keys_do_what_their_scopes_say_until_they_are_revoked() {
    let registry = start();
    let secret = console(&registry, &["key", "create", "ci", "--namespace", "tools", "--scope", "tools/*=pull,push", "--expires", "30"], "");
    let reading = console(&registry, &["key", "create", "reader", "--owner", "alice", "--scope", "tools/*=pull"], "");
    let home = Home::new(registry.url());
    import(&home, "tools/hello:1", "hello\n");
    let with = |key: &str, arguments: &[&str]| -> Outcome { home.command(arguments).env("TURBO_TOKEN", key.trim()).output().unwrap().into() };
    with(&secret, &["push", "tools/hello:1"]).ok();
    let refused = with(&reading, &["push", "tools/hello:1", "tools/hello:2"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("rights"), "{}", refused.stderr);
    assert_ne!(with(&secret, &["push", "tools/hello:1", "alice/hello:1"]).code, Some(0));
    let other = Home::new(registry.url());
    with_input(&mut other.command(["login", "--key-stdin"]), &reading).ok();
    other.turbo(["pull", "tools/hello:1"]).ok();
    assert!(console(&registry, &["key", "list"], "").contains("tools/*=pull,push"));
    console(&registry, &["key", "revoke", "ci"], "");
    eventually("the revoked key is refused", || with(&secret, &["push", "tools/hello:1", "tools/hello:3"]).code == Some(125));
    console(&registry, &["user", "disable", "alice"], "");
    eventually("a disabled user's key is refused", || {
        Home::new(registry.url()).command(["pull", "tools/hello:1"]).env("TURBO_TOKEN", reading.trim()).output().unwrap().status.code() == Some(125)
    });
}

#[test]
fn what_listens_for_others_asks_for_credentials_and_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |options: &[&str]| {
        let mut command = Command::new(binary("turbo-registry"));
        command.args(["serve", "--data"]).arg(folder.path().join("data")).args(options);
        command
    };
    let refused: Outcome = serve(&["--listen", "0.0.0.0:0"]).output().unwrap().into();
    assert!(refused.code == Some(1) && refused.stderr.contains("--tls-cert") && refused.stderr.contains("--insecure-no-tls"), "{}", refused.stderr);
    let refused: Outcome = serve(&["--auth", "false"]).output().unwrap().into();
    assert!(refused.stderr.contains("--insecure-no-auth"), "{}", refused.stderr);
    // The first administrator's password comes from a file, and cannot be a short one.
    let file = folder.path().join("password");
    std::fs::write(&file, "short\n").unwrap();
    let refused: Outcome = serve(&["--listen", "127.0.0.1:0", "--auth", "true", "--admin-password-file", file.to_str().unwrap()]).output().unwrap().into();
    assert!(refused.code == Some(1) && refused.stderr.contains("at least 8"), "{}", refused.stderr);
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let registry = TestRegistry::start_with_options(&["--auth", "true", "--admin-password-file", file.to_str().unwrap()]);
    let home = Home::new(registry.url());
    login(&home, &registry, "admin", PASSWORD).ok();
    assert!(!registry.data().join("initial-admin-password").exists());
    // The last one cannot be taken away, from the console either.
    let mut remove = Command::new(binary("turbo-registry"));
    let kept: Outcome = remove.args(["user", "remove", "admin", "--data"]).arg(registry.data()).output().unwrap().into();
    assert!(kept.code == Some(1) && kept.stderr.contains("last administrator"), "{}", kept.stderr);
}

#[track_caller]
fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).env("HOME", folder).env("XDG_RUNTIME_DIR", folder).output().expect("the tool runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn skopeo_and_podman_log_in() {
    if !has("skopeo") || !has("umoci") {
        return;
    }
    let registry = start();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, "umoci", &["init", "--layout", "layout"]);
    run(at, "umoci", &["new", "--image", "layout:one"]);
    std::fs::write(at.join("file"), vec![7u8; 100_000]).unwrap();
    run(at, "umoci", &["insert", "--rootless", "--image", "layout:one", "file", "/file"]);
    let target = |name: &str| format!("docker://{}/{name}", registry.address());
    let creds = format!("alice:{PASSWORD}");
    run(at, "skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", &creds, "oci:layout:one", &target("tools/app:1")]);
    run(at, "skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", "--src-creds", &creds, &target("tools/app:1"), "oci:back:one"]);
    // Another repository of the namespace: blobs are mounted, with a token for both.
    let mount = [
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--src-creds",
        &creds,
        "--dest-creds",
        &creds,
        &target("tools/app:1"),
        &target("alice/app:1"),
    ];
    run(at, "skopeo", &mount);
    let fails = |arguments: &[&str]| {
        let output = Command::new("skopeo").args(arguments).env("HOME", at).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    fails(&["inspect", "--tls-verify=false", &target("tools/app:1")]);
    fails(&["inspect", "--tls-verify=false", "--creds", "alice:wrong horse battery", &target("tools/app:1")]);
    fails(&["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", &creds, "oci:layout:one", &target("other/app:1")]);
    let key = console(&registry, &["key", "create", "ci", "--scope", "tools/*=pull"], "");
    run(at, "skopeo", &["inspect", "--tls-verify=false", "--creds", &format!("ci:{}", key.trim()), &target("tools/app:1")]);
    if !has("podman") {
        return;
    }
    let authfile = at.join("auth.json");
    let mut command = Command::new("podman");
    command
        .args(["login", "--tls-verify=false", "--authfile"])
        .arg(&authfile)
        .args(["--username", "alice", "--password-stdin", registry.address()])
        .env("HOME", at);
    let logged = with_input(&mut command, PASSWORD);
    if logged.stderr.contains("cannot") && !logged.stderr.contains("unauthorized") && logged.code != Some(0) {
        eprintln!("skipped: podman does not run here: {}", logged.stderr);
        return;
    }
    logged.ok();
    run(at, "skopeo", &["inspect", "--tls-verify=false", "--authfile", authfile.to_str().unwrap(), &target("tools/app:1")]);
}

#[test]
fn docker_logs_in_pushes_and_pulls() {
    let Some(docker) = Docker::start() else { return };
    let registry = start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), vec![7u8; 100_000]).unwrap();
    run(folder.path(), "tar", &["-cf", "root.tar", "file"]);
    let name = |rest: &str| format!("{}/{rest}", registry.address());
    docker.ok(&["import", folder.path().join("root.tar").to_str().unwrap(), &name("tools/dock:1")]);
    assert!(!docker.run(&["push", &name("tools/dock:1")]).status.success(), "nobody pushes without a login");
    let wrong = with_input(&mut docker.command(&["login", "--username", "alice", "--password-stdin", registry.address()]), "wrong horse battery");
    assert_ne!(wrong.code, Some(0));
    with_input(&mut docker.command(&["login", "--username", "alice", "--password-stdin", registry.address()]), PASSWORD).ok();
    let config = std::fs::read_to_string(docker.folder().join(".docker/config.json")).unwrap();
    assert!(config.contains("identitytoken"), "docker keeps a login and not the password: {config}");
    let id = |of: &str| docker.ok(&["inspect", "--format", "{{.Id}}", of]);
    let pushed = id(&name("tools/dock:1"));
    docker.ok(&["push", &name("tools/dock:1")]);
    docker.ok(&["tag", &name("tools/dock:1"), &name("alice/dock:2")]);
    assert!(docker.ok(&["push", &name("alice/dock:2")]).contains("Mounted from tools/dock"));
    docker.ok(&["tag", &name("tools/dock:1"), &name("other/dock:1")]);
    assert!(!docker.run(&["push", &name("other/dock:1")]).status.success());
    docker.ok(&["rmi", "--force", &pushed]);
    docker.ok(&["pull", &name("tools/dock:1")]);
    assert_eq!(id(&name("tools/dock:1")), pushed);
    docker.ok(&["logout", registry.address()]);
    docker.ok(&["rmi", "--force", &pushed]);
    assert!(!docker.run(&["pull", &name("tools/dock:1")]).status.success());
}

//! What is installed from, installed: Debian packages in a system that is thrown away, the image in docker, units, compose file,
//! alerts, and a backup that a server is started on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use integration_tests::{Docker, Home, Packages, TestRegistry, binary};
use serde_json::Value;

/// Whether a tool is here; if not, says so. A test that needs it returns.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: this machine has no {tool}; `cargo xtask test` installs it");
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The repository's folder `deploy`.
fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().port()
}

/// Status and body.
fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.get(9..12).and_then(|code| code.parse().ok()).ok_or_else(|| std::io::Error::other(answer.clone()))?;
    Ok((status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()))
}

#[track_caller]
fn wait_until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not in time: {what}");
}

#[test]
fn what_is_packed_twice_is_the_same() {
    let Some(packages) = Packages::get() else { return };
    let again = packages.folder().parent().unwrap().join("second");
    packages.make(&again);
    let mut count = 0;
    for entry in std::fs::read_dir(packages.folder()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        assert!(std::fs::read(entry.path()).unwrap() == std::fs::read(again.join(entry.file_name())).unwrap(), "{}", entry.path().display());
        count += 1;
    }
    assert_eq!(count, 3);
    if has("lintian") {
        for name in ["turbo", "turbo-registry"] {
            // Of a trial, which is not compressed.
            let trial = "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball";
            let found = Command::new("lintian")
                .args(["--allow-root", "--fail-on", "error,warning", "--suppress-tags", trial])
                .arg(packages.deb(name))
                .output()
                .unwrap();
            assert!(found.status.success(), "{}", text(&found.stdout));
        }
    }
    let _ = std::fs::remove_dir_all(again);
}

/// Runs a script in a copy of this system that is thrown away: an overlay whose changes are in memory.
fn in_throw_away_system(script: &str, packages: &Packages) -> Option<Output> {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root can install packages");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let outer = r#"set -e
        mount -t tmpfs tmpfs "$1"
        mkdir "$1/upper" "$1/work" "$1/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root" || { echo no-overlay; exit 0; }
        mount -t proc proc "$1/root/proc"
        mount --rbind /dev "$1/root/dev"
        mkdir "$1/root/packages"
        mount --bind "$2" "$1/root/packages"
        exec chroot "$1/root" /bin/sh -euc "$3"
    "#;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outer, "sh"]).arg(folder.path()).arg(packages.folder()).arg(script);
    let output = unshare.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").stdin(Stdio::null()).output().expect("unshare starts");
    if text(&output.stdout).starts_with("no-overlay") || text(&output.stderr).contains("unshare failed") {
        eprintln!("skipped: no overlay can be mounted here: {}", text(&output.stderr));
        return None;
    }
    Some(output)
}

#[test]
fn packages_are_installed_upgraded_removed_and_purged() {
    let Some(packages) = Packages::get() else { return };
    let script = r#"
        cd /packages
        dpkg -i turbo_*.deb turbo-registry_*.deb
        echo "client $(turbo version | head -1)"
        echo "server $(turbo-registry version)"
        echo "mode $(stat -c '%U:%G %a' /etc/turbo/registry.toml) $(stat -c '%U:%G %a' /var/lib/turbo-registry)"
        man -w turbo-registry >/dev/null 2>&1 || ls /usr/share/man/man1/turbo-registry.1.gz
        if command -v systemd-analyze >/dev/null; then
            echo "verify $(systemd-analyze verify --man=no /usr/lib/systemd/system/turbo-registry*.service /usr/lib/systemd/system/turbo-registry*.timer 2>&1 | grep turbo-registry || echo clean)"
            test -L /etc/systemd/system/multi-user.target.wants/turbo-registry.service && echo enabled
        fi
        # The server runs as its user on its own configuration.
        setpriv --reuid turbo-registry --regid turbo-registry --init-groups turbo-registry serve --config /etc/turbo/registry.toml --listen 127.0.0.1:0 2>/tmp/log &
        server=$!
        for step in $(seq 600); do grep -q listening /tmp/log && break; sleep 0.05; done
        address=$(sed -n 's/.*listening on http:..//p' /tmp/log)
        echo "live $(turbo-registry health --live --listen "$address")"
        kill "$server"; wait "$server" && echo "stopped well"
        ls -A /var/lib/turbo-registry | grep -q registry.db && echo "data"
        runuser -u turbo-registry -- turbo-registry backup --config /etc/turbo/registry.toml /var/backups/turbo-registry
        # What the administrator changed survives an upgrade, and a removal.
        echo '# mine' >> /etc/turbo/registry.toml
        dpkg -i turbo-registry_*.deb
        tail -1 /etc/turbo/registry.toml
        echo "mode $(stat -c '%U:%G %a' /etc/turbo/registry.toml)"
        dpkg -r turbo turbo-registry
        test ! -e /usr/bin/turbo && test ! -e /usr/bin/turbo-registry && echo "removed"
        test -e /etc/turbo/registry.toml && test -e /var/lib/turbo-registry/registry.db && echo "kept"
        dpkg -P turbo turbo-registry
        test ! -e /etc/turbo && test ! -e /var/lib/turbo-registry && echo "purged"
        test -e /var/backups/turbo-registry/registry.db && echo "backup kept"
        dpkg -l turbo turbo-registry 2>/dev/null | grep -c '^ii' || true
    "#;
    let Some(output) = in_throw_away_system(script, packages) else { return };
    let said = ok(&output);
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("server turbo-registry {version}"),
        "mode root:turbo-registry 640 turbo-registry:turbo-registry 700".to_owned(),
        "live ok".to_owned(),
        "stopped well".to_owned(),
        "data".to_owned(),
        "# mine".to_owned(),
        "mode root:turbo-registry 640".to_owned(),
        "removed".to_owned(),
        "kept".to_owned(),
        "purged".to_owned(),
        "backup kept".to_owned(),
        "0".to_owned(),
    ] {
        assert!(said.lines().any(|one| one == line), "`{line}` is missing:\n{said}{}", text(&output.stderr));
    }
    assert!(said.contains("client turbo"), "{said}");
    if has("systemd-analyze") {
        assert!(said.contains("verify clean\nenabled\n"), "{said}{}", text(&output.stderr));
    }
    assert!(!Path::new("/usr/bin/turbo-registry").exists(), "this system was not touched");
}

#[test]
fn units_are_hardened() {
    if !has("systemd-analyze") {
        return;
    }
    let units: Vec<PathBuf> = std::fs::read_dir(deploy().join("systemd")).unwrap().flatten().map(|entry| entry.path()).collect();
    let services: Vec<&PathBuf> = units.iter().filter(|path| path.extension().is_some_and(|end| end == "service")).collect();
    assert_eq!(services.len(), 3);
    for unit in services {
        // Tenths: 10 is fully open, 0 reaches nothing. A server has to listen.
        let output = Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=15", "--no-pager"]).arg(unit).output().unwrap();
        if text(&output.stderr).contains("unrecognized option") {
            eprintln!("skipped: this systemd-analyze does not judge files");
            return;
        }
        assert!(output.status.success(), "{}: {}", unit.display(), text(&output.stdout));
    }
}

#[test]
fn the_compose_file_is_whole_and_its_secrets_are_made() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["compose.yaml", "compose-secrets.sh"] {
        std::fs::copy(deploy().join(name), folder.path().join(name)).unwrap();
    }
    let make = || ok(&Command::new("sh").arg("compose-secrets.sh").current_dir(folder.path()).output().unwrap());
    make();
    let read = || -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("secrets")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    };
    let first = read();
    make();
    assert!(first == read(), "made twice, secrets stay");
    let secret = |name: &str| text(&std::fs::read(folder.path().join("secrets").join(name)).unwrap());
    assert!(secret("postgres-password").len() >= 40 && secret("admin-password").len() >= 20 && secret("s3-secret").len() >= 40);
    assert_eq!(secret("database-url"), format!("postgres://turbo:{}@postgres/turbo", secret("postgres-password")));
    let s3: Value = serde_json::from_str(&secret("s3.json")).unwrap();
    assert_eq!(s3["identities"][0]["credentials"][0]["secretKey"], secret("s3-secret"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(folder.path().join("secrets")).unwrap().permissions().mode() & 0o777, 0o700);

    let compose = std::fs::read_to_string(deploy().join("compose.yaml")).unwrap();
    let named: Vec<&str> = compose.lines().filter_map(|line| line.split_once("./secrets/")).map(|(_, rest)| rest.trim_end_matches([' ', '}'])).collect();
    assert!(named.len() >= 8);
    for name in named {
        assert!(!secret(name).is_empty(), "{name}");
    }
    let tools: [(&str, &[&str]); 2] = [("docker", &["compose"]), ("docker-compose", &[])];
    let tool = tools.iter().find(|(program, words)| Command::new(program).args(*words).arg("version").output().is_ok_and(|output| output.status.success()));
    let Some((program, words)) = tool else { return eprintln!("skipped: this machine has no docker compose; `cargo xtask test` installs it") };
    let config = Command::new(program).args(*words).args(["-p", "turbo", "-f", "compose.yaml", "config"]).current_dir(folder.path()).output().unwrap();
    let shown = ok(&config);
    for part in ["service_healthy", "no-new-privileges:true", "read_only: true", "internal: true"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains(&secret("postgres-password")), "no secret is in the configuration");
}

#[test]
fn alerts_name_metrics_that_there_are() {
    let rules = std::fs::read_to_string(deploy().join("prometheus-rules.yml")).unwrap();
    let registry = TestRegistry::start();
    let port = registry.address().rsplit_once(':').unwrap().1.parse().unwrap();
    get(port, "/healthz").unwrap();
    let metrics = get(port, "/metrics").unwrap().1;
    let names: Vec<&str> = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("turbo_registry_")).collect();
    assert!(names.len() > 8);
    for name in names {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} is not a metric");
    }
}

/// A container of the image, on the machine's network; removed when dropped.
struct Container<'a> {
    docker: &'a Docker,
    id: String,
    port: u16,
}

impl<'a> Container<'a> {
    fn start(docker: &'a Docker, image: &str) -> Option<Self> {
        let port = free_port();
        let listen = format!("TURBO_REGISTRY_LISTEN=127.0.0.1:{port}");
        let hardened = ["run", "--detach", "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "-e", &listen, image];
        let output = docker.run(&hardened);
        if !output.status.success() {
            eprintln!("skipped: docker cannot run containers here: {}", text(&output.stderr));
            return None;
        }
        let container = Self { docker, id: text(&output.stdout).trim().to_owned(), port };
        wait_until(&format!("the server in the container answers: {}", text(&docker.run(&["logs", &container.id]).stderr)), || {
            get(port, "/healthz").is_ok_and(|(status, _)| status == 200)
        });
        Some(container)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.docker.run(&["rm", "--force", "--volumes", &self.id]);
    }
}

#[test]
fn the_image_serves_as_an_ordinary_user_and_stops_without_cutting_off() {
    let Some(packages) = Packages::get() else { return };
    let Some(docker) = Docker::start() else { return };
    let archive = packages.folder().join("turbo-registry-image.tar");
    docker.ok(&["load", "--input", archive.to_str().unwrap()]);
    let image = format!("turbo-registry:{}", env!("CARGO_PKG_VERSION"));
    let context = packages.folder().join("image");
    let file = deploy().join("Containerfile");
    docker.ok(&["build", "--file", file.to_str().unwrap(), "--tag", "built", context.to_str().unwrap()]);
    let inspect = |image: &str| -> Value { serde_json::from_str(&docker.ok(&["inspect", "--format", "{{json .Config}}", image])).unwrap() };
    let (loaded, built) = (inspect(&image), inspect("built"));
    for key in ["User", "Cmd", "Entrypoint", "Volumes", "ExposedPorts", "Healthcheck", "StopSignal", "WorkingDir"] {
        assert_eq!(loaded[key], built[key], "{key}");
        assert!(!loaded[key].is_null(), "{key}");
    }
    for variable in loaded["Env"].as_array().unwrap() {
        assert!(built["Env"].as_array().unwrap().contains(variable), "{variable}");
    }

    // On an address that others reach it wants TLS, and says so; without, if told, it wants users, and makes the first.
    let refused = docker.run(&["run", "--rm", "--network=none", "--read-only", &image]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("TLS"), "{}", text(&refused.stderr));
    let alone = docker.run(&["run", "--detach", "--network=none", "--read-only", "-e", "TURBO_REGISTRY_INSECURE_NO_TLS=true", &image]);
    if !alone.status.success() {
        return eprintln!("skipped: docker cannot run containers here: {}", text(&alone.stderr));
    }
    let alone = text(&alone.stdout).trim().to_owned();
    let logs = || text(&docker.run(&["logs", &alone]).stderr);
    wait_until("the first administrator is made", || logs().contains("listening on"));
    assert!(logs().contains("the administrator is `admin`"), "{}", logs());
    assert!(docker.ok(&["exec", &alone, "/usr/bin/turbo-registry", "user", "list"]).contains("admin"));
    docker.ok(&["rm", "--force", "--volumes", &alone]);

    let Some(container) = Container::start(&docker, &image) else { return };
    let processes = docker.ok(&["top", &container.id, "-eo", "pid,uid,gid"]);
    assert!(processes.lines().last().unwrap().split_whitespace().skip(1).eq(["10001", "10001"]), "{processes}");
    assert_eq!(docker.ok(&["exec", &container.id, "/usr/bin/turbo-registry", "health"]), "ready");
    assert_eq!(get(container.port, "/readyz").unwrap().0, 200);
    assert!(!docker.run(&["exec", &container.id, "/bin/sh"]).status.success(), "there is no shell");

    // Push and pull of a real image: the server's own.
    let name = format!("127.0.0.1:{}/tools/registry:1", container.port);
    docker.ok(&["tag", &image, &name]);
    let id = docker.ok(&["inspect", "--format", "{{.Id}}", &image]);
    docker.ok(&["push", &name]);
    docker.ok(&["rmi", &name]);
    docker.ok(&["pull", &name]);
    assert_eq!(docker.ok(&["inspect", "--format", "{{.Id}}", &name]), id);

    // An upload that is half sent when the server is told to stop is taken to its end.
    let mut upload = TcpStream::connect(("127.0.0.1", container.port)).unwrap();
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    write!(upload, "POST /v2/tools/late/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhe").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut stopping = docker.command(&["stop", "--time", "40", &container.id]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("no more connections are taken", || TcpStream::connect(("127.0.0.1", container.port)).is_err());
    upload.write_all(b"llo").unwrap();
    let mut answer = String::new();
    BufReader::new(upload).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(stopping.wait().unwrap().success());
    assert_eq!(docker.ok(&["inspect", "--format", "{{.State.ExitCode}}", &container.id]), "0");
    docker.ok(&["start", &container.id]);
    wait_until("it serves again", || get(container.port, "/healthz").is_ok_and(|(status, _)| status == 200));
    assert_eq!(get(container.port, &format!("/v2/tools/late/blobs/{digest}")).unwrap(), (200, "hello".to_owned()), "the volume was kept");
}

#[test]
fn a_server_is_started_on_a_backup_that_was_taken_while_others_pushed() {
    let registry = TestRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("backup");
    let backup = || Command::new(binary("turbo-registry")).args(["backup", "--data"]).arg(registry.data()).arg(&target).output().unwrap();
    let home = Home::new(registry.url());
    let push = |home: &Home, number: usize| {
        let noise: Vec<u8> = (0..60_000u32).flat_map(|n| (n ^ number as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        home.file("app/data", noise);
        let app = home.path().join("app");
        let name = format!("tools/app{number}:1");
        home.turbo(["import", "dir", app.to_str().unwrap(), "--name", &name]).ok();
        home.turbo(["push", &name]).ok();
    };
    push(&home, 0);
    ok(&backup());
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| (1..6).for_each(|number| push(&home, number)));
        while !pushing.is_finished() {
            ok(&backup());
        }
        pushing.join().unwrap();
    });
    ok(&backup());
    assert!(ok(&backup()).contains(" 0 files with 0 bytes copied"), "nothing is copied twice");

    // All of it is there, in a registry that knows nothing else. Started on a copy: a server writes to its folder.
    let restored = folder.path().join("restored");
    ok(&Command::new("cp").arg("-a").arg(&target).arg(&restored).output().unwrap());
    let other = TestRegistry::start_at(&restored, "127.0.0.1:0");
    let reader = Home::new(other.url());
    for number in 0..6 {
        reader.turbo(["pull", &format!("tools/app{number}:1")]).ok();
    }

    // A pack that is gone is told, and not taken for a good backup.
    let lost = walk(&registry.data().join("storage/packs")).into_iter().next().unwrap();
    let name = lost.file_name().unwrap().to_owned();
    std::fs::remove_file(&lost).unwrap();
    assert!(backup().status.success(), "the backup still has it");
    let kept = walk(&target.join("storage/packs")).into_iter().find(|path| path.file_name() == Some(&name)).unwrap();
    std::fs::remove_file(kept).unwrap();
    let told = backup();
    assert!(!told.status.success() && text(&told.stderr).contains("lacks 1 packs"), "{}", text(&told.stderr));
    // And not into itself.
    let inside = registry.data().join("storage/backup");
    let refused = Command::new(binary("turbo-registry")).args(["backup", "--data"]).arg(registry.data()).arg(inside).output().unwrap();
    assert!(!refused.status.success());
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(walk(&path)),
            path => found.push(path),
        }
    }
    found
}

#[test]
fn a_supervisor_is_told_and_secrets_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let url = folder.path().join("url");
    std::fs::write(&url, format!("sqlite:{}\n", folder.path().join("elsewhere.db").display())).unwrap();
    let mut server = Command::new(binary("turbo-registry"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(folder.path().join("data"))
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .env("TURBO_REGISTRY_DATABASE_URL_FILE", &url)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hear = || {
        let mut message = [0; 4096];
        let len = socket.recv(&mut message).expect("a message in time");
        text(&message[..len])
    };
    let until = |part: &str| {
        for _ in 0..200 {
            if hear().contains(part) {
                return;
            }
        }
        panic!("{part} was not told");
    };
    until("READY=1");
    until("WATCHDOG=1");
    assert!(folder.path().join("elsewhere.db").exists(), "the secret was read from its file");
    let signal = |name: &str| assert!(Command::new("kill").args([name, &server.id().to_string()]).status().unwrap().success());
    signal("-HUP");
    until("RELOADING=1");
    until("READY=1");
    signal("-TERM");
    until("STOPPING=1");
    assert!(server.wait().unwrap().success());
}

//! Ways out of the VM, tried by a hostile program: in full, in write-copy with a folder kept from sight, and as uid 0 inside.
//!
//! Each case first makes the attack where nothing holds it, or as the modes allow it, so that it can fail; then inside. As
//! root the cases run twice: started by root, and by an ordinary user. This program plays four parts, as `run.rs` does:
//! the test, `turbo` (`child`), the attacker (`inside`), and both outside.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use layer_format::entry::Kind;
use vm::{BindMount, Launcher, Mode, RunSpec};

#[path = "support/attacks.rs"]
mod attacks;
#[path = "support/fixtures.rs"]
#[allow(dead_code)]
mod fixtures;
#[path = "support/layer.rs"]
mod layer;
#[path = "support/terminal.rs"]
mod terminal;

use attacks::{HELD, SECRET};
use terminal::Terminal;

const USER: u32 = 12345;
/// The program inside, in images that bring their own root.
const INSIDE: &str = "/bin/inside";
const FULL: &[&str] = &["--mode", "full"];
const FULL_ROOT: &[&str] = &["--mode", "full", "--root"];

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as Case)),*] };
}

type Case = fn(&Bench);

const CASES: &[(&str, Case)] = cases![
    paths_do_not_lead_out,
    links_of_images_do_not_lead_out,
    mount_points_do_not_follow_links,
    descriptors_do_not_lead_out,
    processes_do_not_lead_out,
    processes_outside_are_out_of_reach,
    terminals_of_others_are_out_of_reach,
    nothing_is_typed_into_the_terminal,
    mounts_are_held_together,
    nested_sandboxes_work_in_write_copy_and_not_in_full,
    setuid_has_no_effect,
    device_nodes_are_inert,
    abstract_sockets_are_out_of_reach,
    keys_are_out_of_reach,
    chroot_does_not_lead_out,
    kernel_switches_are_read_only,
    listed_system_calls_are_refused,
    races_do_not_lead_out,
    other_names_do_not_lead_out,
    the_application_has_no_privileges,
];

fn main() {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.first().map(String::as_str) {
        Some("child") => child(&args[1..]),
        Some("inside") => attacks::run(&args[1], &args[2..]),
        filter => test(filter.filter(|filter| !filter.starts_with('-')).unwrap_or_default()),
    }
}

fn test(filter: &str) {
    let is_root = rustix::process::getuid().is_root();
    let failed: Vec<String> = vm::probe(&std::env::temp_dir()).into_iter().filter_map(|check| check.remedy).collect();
    if !failed.is_empty() {
        eprintln!("skipped: this machine cannot run VMs: {}", failed.join("; "));
        return;
    }
    let users = if is_root { &[None, Some(USER)][..] } else { &[None] };
    let mut failures = Vec::new();
    for user in users {
        for (name, case) in CASES.iter().filter(|(name, _)| name.contains(filter)) {
            let bench = Bench::new(*user);
            let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&bench))).is_ok();
            let who = user.map_or("self".to_owned(), |uid| format!("uid {uid}"));
            println!("test {name} ({who}) ... {}", if passed { "ok" } else { "FAILED" });
            if !passed {
                failures.push(format!("{name} ({who})"));
            }
        }
    }
    assert!(failures.is_empty(), "failed: {failures:?}");
}

/// Plays `turbo`, over a hostile image.
fn child(options: &[String]) {
    let launcher = Launcher::fork().unwrap();
    let mut spec = RunSpec::new("unset", Vec::<OsString>::new());
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().unwrap().clone();
        let pair = |text: String| text.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        match option.as_str() {
            "--sandbox" => spec.sandbox = value().into(),
            "--mode" => spec.rules = vm::Rules::new(mode(&value())),
            "--path" => {
                let (path, name) = pair(value());
                spec.rules.state(layer::MemoryLayer::path(path), mode(&name));
            }
            "--root" => spec.map_root = true,
            "--mount" => {
                let (source, target) = pair(value());
                spec.mounts.push(BindMount { source: source.into(), target: Some(target.into()) });
            }
            _ => spec.command = options.by_ref().map(OsString::from).collect(),
        }
    }
    spec.env.push(("TMPDIR".into(), "/tmp".into()));
    let mut layers = fixtures::by_name("rootfs");
    layers.push(Arc::new(hostile()));
    match launcher.start(spec, layers).and_then(|mut running| running.wait()) {
        Ok(status) => std::process::exit(status.shell_code()),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(125)
        }
    }
}

fn mode(name: &str) -> Mode {
    [Mode::Full, Mode::WriteCopy, Mode::Merge, Mode::Hide].into_iter().find(|mode| mode.to_string() == name).unwrap()
}

/// An image that was made to do harm.
fn hostile() -> layer::MemoryLayer {
    let mut layer = layer::MemoryLayer::new();
    layer.symlink("evil/root", "/");
    layer.symlink("evil/up", "../../../../../../../../..");
    layer.symlink("evil/process", "/proc/1/root");
    layer.add("evil/zero", 0o666, Kind::CharDevice { major: 1, minor: 5 }, Vec::new());
    layer.add("evil/disk", 0o666, Kind::BlockDevice { major: 254, minor: 0 }, Vec::new());
    layer
}

struct Bench {
    user: Option<u32>,
    dir: tempfile::TempDir,
}

impl Bench {
    /// A folder that the user owns, with a sandbox, and a secret that the user may read outside.
    fn new(user: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), dir.path().join("run")).unwrap();
        let bench = Self { user, dir };
        for name in ["sandbox", "hidden", "open", "open/d"] {
            fs::create_dir(bench.path(name)).unwrap();
        }
        for (name, content) in [("hidden/secret", SECRET), ("hidden/file", SECRET), ("open/d/file", "harmless")] {
            fs::write(bench.path(name), content).unwrap();
        }
        for name in ["sandbox", "hidden", "open", "open/d", "hidden/secret", "hidden/file", "open/d/file", ""] {
            chown(bench.path(name), user, user).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn secret(&self) -> String {
        self.text("hidden/secret")
    }

    fn as_user(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).current_dir(self.dir.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// The attack without a VM.
    fn outside(&self, attack: &[&str]) -> Command {
        self.as_user(&self.text("run"), &[&["inside"], attack].concat())
    }

    /// The attack in a VM. In full the program is the image's own.
    fn inside(&self, options: &[&str], attack: &[&str]) -> Command {
        let (run, sandbox) = (self.text("run"), self.text("sandbox"));
        let program = if options.contains(&"full") && options.contains(&"--mode") { INSIDE } else { &run };
        let args = [&["child", "--sandbox", &sandbox], options, &["--", program, "inside"], attack].concat();
        self.as_user(&run, &args)
    }

    /// Keeps the folder with the secret from sight.
    fn hiding(&self) -> [String; 2] {
        ["--path".to_owned(), format!("{}=full", self.text("hidden"))]
    }

    #[track_caller]
    fn must_reach(&self, mut command: Command) -> String {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the attack does not work where nothing holds it: {}", said(&output));
        said(&output)
    }

    #[track_caller]
    fn must_hold(&self, mut command: Command) -> String {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(HELD), "{}", said(&output));
        said(&output)
    }

    /// In full as the user and as uid 0, and in write-copy with the secret out of sight, likewise.
    #[track_caller]
    fn must_hold_everywhere(&self, attack: &[&str]) {
        let hiding = self.hiding();
        let hiding = [hiding[0].as_str(), hiding[1].as_str()];
        for options in [FULL, FULL_ROOT, &hiding, &[&hiding[..], &["--root"]].concat()] {
            self.must_hold(self.inside(options, attack));
        }
    }
}

fn said(output: &Output) -> String {
    format!("{:?} {}{}", output.status.code(), String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn paths_do_not_lead_out(bench: &Bench) {
    let secret = bench.secret();
    let up = format!("{}{}", "../".repeat(40), secret.trim_start_matches('/'));
    let attack = ["read", &secret, &up, &format!("/proc/self/root{secret}"), &format!("/proc/self/cwd/{up}"), &format!("/dev/fd/../root{secret}")];
    bench.must_reach(bench.outside(&attack));
    bench.must_reach(bench.inside(&[], &attack));
    bench.must_hold_everywhere(&attack);
}

fn links_of_images_do_not_lead_out(bench: &Bench) {
    let secret = bench.secret();
    let paths = ["root", "up", "process"].map(|link| format!("/evil/{link}{secret}"));
    let attack = ["read", &paths[0], &paths[1], &paths[2]];
    symlink("/", bench.path("link")).unwrap();
    bench.must_reach(bench.outside(&["read", &format!("{}{secret}", bench.text("link"))]));
    bench.must_reach(bench.inside(&[], &attack));
    bench.must_hold_everywhere(&attack);
}

fn mount_points_do_not_follow_links(bench: &Bench) {
    // By way of the image's link to `/` the mount lands in the VM's own tree, and the host's is as it was.
    let source = bench.text("open");
    let target = format!("/evil/root/evil/up{}/planted", bench.dir.path().display());
    let mount = format!("{source}={target}");
    bench.must_hold(bench.inside(&["--mode", "full", "--mount", &mount], &["read", &target]));
    assert!(!bench.path("planted").exists());
    // A sandbox, say of a state that came from elsewhere, in which the VM's own mount points are links.
    for name in ["dev", "proc", "sys"] {
        let upper = bench.path("sandbox/upper");
        fs::create_dir_all(&upper).unwrap();
        symlink(bench.path("open"), upper.join(name)).unwrap();
        for path in [bench.path("sandbox"), upper.clone()] {
            chown(path, bench.user, bench.user).unwrap();
        }
        let output = bench.inside(FULL, &["read", "/x"]).output().unwrap();
        assert!(output.status.code() == Some(125) && said(&output).contains(&format!("/{name}")), "{}", said(&output));
        assert_eq!(fs::read_dir(bench.path("open")).unwrap().count(), 1, "nothing was made there");
        fs::remove_dir_all(bench.path("sandbox")).unwrap();
        fs::create_dir(bench.path("sandbox")).unwrap();
        chown(bench.path("sandbox"), bench.user, bench.user).unwrap();
    }
}

fn descriptors_do_not_lead_out(bench: &Bench) {
    let secret = bench.secret();
    let attack = ["descriptors", &secret];
    let directory = |path: &str, flags: i32| {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(flags).open(bench.path(path)).unwrap()
    };
    // As standard input, open and by name only; and as a further descriptor, from a shell.
    for flags in [0, libc::O_PATH] {
        let with_input = |mut command: Command| {
            command.stdin(directory("hidden", flags));
            command
        };
        bench.must_reach(with_input(bench.outside(&attack)));
        for options in [FULL, FULL_ROOT, &bench.hiding().each_ref().map(String::as_str)] {
            bench.must_hold(with_input(bench.inside(options, &attack)));
        }
    }
    let with_more = |command: Command| {
        let mut line = vec!["-c".to_owned(), format!("exec \"$0\" \"$@\" 7<{0} 111<{0}", bench.text("hidden"))];
        line.push(command.get_program().to_str().unwrap().to_owned());
        line.extend(command.get_args().map(|arg| arg.to_str().unwrap().to_owned()));
        bench.as_user("/bin/bash", &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    bench.must_reach(with_more(bench.outside(&attack)));
    for options in [FULL, FULL_ROOT, &bench.hiding().each_ref().map(String::as_str)] {
        bench.must_hold(with_more(bench.inside(options, &attack)));
    }
}

fn processes_do_not_lead_out(bench: &Bench) {
    let secret = bench.secret();
    // Outside a process of the same user gives away its root.
    let mut victim = bench.as_user("/bin/sleep", &["1000"]).spawn().unwrap();
    bench.must_reach(bench.outside(&["proc", &secret]));
    bench.must_hold_everywhere(&["proc", &secret]);
    victim.kill().unwrap();
    victim.wait().unwrap();
}

fn processes_outside_are_out_of_reach(bench: &Bench) {
    let mut victim = bench.as_user("/bin/sleep", &["1000"]).spawn().unwrap();
    let pid = victim.id().to_string();
    bench.must_hold_everywhere(&["trace", &pid]);
    assert!(victim.try_wait().unwrap().is_none(), "it lives");
    // Last, since it stops the victim.
    bench.must_reach(bench.outside(&["trace", &pid]));
    victim.kill().unwrap();
    victim.wait().unwrap();
}

fn terminals_of_others_are_out_of_reach(bench: &Bench) {
    let (own, other) = (Terminal::open(bench.user), Terminal::open(bench.user));
    assert!(bench.must_reach(own.attach(bench.outside(&["terminals"]))).contains("/dev/pts/"));
    assert!(other.has_received("spoofed"));
    for options in [FULL, FULL_ROOT] {
        bench.must_hold(own.attach(bench.inside(options, &["terminals"])));
        assert!(!other.has_received("spoofed"));
        // Its own is as good as ever.
        let found = bench.must_reach(own.attach(bench.inside(options, &["own-terminal"])));
        assert!(found.contains("/dev/console"), "{found}");
    }
    bench.must_reach(own.attach(bench.inside(&[], &["own-terminal"])));
}

fn nothing_is_typed_into_the_terminal(bench: &Bench) {
    let terminal = Terminal::open(bench.user);
    bench.must_reach(terminal.attach(bench.outside(&["type"])));
    for options in [FULL, FULL_ROOT, &[], &["--root"]] {
        bench.must_hold(terminal.attach(bench.inside(options, &["type"])));
    }
}

fn mounts_are_held_together(bench: &Bench) {
    // Whoever made a mount can take it away, here as uid 0 of its own namespace.
    let covered = bench.text("hidden");
    bench.must_reach(bench.outside(&["cover-and-uncover", &covered]));
    let over = format!("{}={covered}", bench.text("open"));
    for options in [&["--mount", &over][..], &["--mount", &over, "--root"], FULL, FULL_ROOT] {
        for attack in ["uncover", "uncover-nested"] {
            bench.must_hold(bench.inside(options, &[attack, &covered]));
        }
    }
}

fn nested_sandboxes_work_in_write_copy_and_not_in_full(bench: &Bench) {
    bench.must_reach(bench.outside(&["nested-namespaces"]));
    for options in [&[][..], &["--root"]] {
        bench.must_reach(bench.inside(options, &["nested-namespaces"]));
    }
    for options in [FULL, FULL_ROOT] {
        bench.must_hold(bench.inside(options, &["nested-namespaces"]));
        bench.must_hold(bench.inside(options, &["own-sysctl"]));
    }
    if Path::new("/usr/bin/bwrap").exists() && bench.user.is_some() {
        let (run, sandbox) = (bench.text("run"), bench.text("sandbox"));
        let nested = [
            "child",
            "--sandbox",
            &sandbox,
            "--",
            "/usr/bin/bwrap",
            "--unshare-all",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "/usr/bin/true",
        ];
        let output = bench.as_user(&run, &nested).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
}

fn setuid_has_no_effect(bench: &Bench) {
    if bench.user.is_none() {
        // Only for an ordinary user is there something to be gained, and only root can make such a program.
        return;
    }
    let program = bench.path("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    let program = program.to_str().unwrap();
    let output = bench.as_user(program, &["-u"]).output().unwrap();
    assert_eq!(output.stdout, b"0\n", "outside the bit has its effect");
    bench.must_reach(bench.outside(&["setuid", program]));
    let mount = format!("{}=/mnt", bench.dir.path().display());
    bench.must_hold(bench.inside(&[], &["setuid", program]));
    bench.must_hold(bench.inside(&["--mount", &mount], &["setuid", "/mnt/id"]));
}

fn device_nodes_are_inert(bench: &Bench) {
    if rustix::process::getuid().is_root() {
        let node = bench.text("zero");
        rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 5))
            .unwrap();
        fs::set_permissions(&node, Permissions::from_mode(0o666)).unwrap();
        bench.must_reach(bench.outside(&["device", &node]));
        // The same node of the host's, by way of the host's view.
        bench.must_hold(bench.inside(&[], &["device", &node]));
    }
    bench.must_reach(bench.outside(&["device", "/dev/zero"]));
    for options in [FULL, FULL_ROOT, &[], &["--root"]] {
        bench.must_reach(bench.inside(options, &["device", "/dev/zero"]));
        for node in ["/evil/zero", "/evil/disk"] {
            bench.must_hold(bench.inside(options, &["device", node]));
        }
        bench.must_hold(bench.inside(options, &["make-device", "/evil/made"]));
    }
}

fn abstract_sockets_are_out_of_reach(bench: &Bench) {
    let name = format!("turbo-escape-{}", bench.dir.path().display());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    bench.must_reach(bench.outside(&["abstract", &name]));
    bench.must_reach(bench.inside(&[], &["abstract", &name]));
    let landlock = vm::examine(&std::env::temp_dir(), Path::new("/x")).into_iter().find(|finding| finding.name == "landlock").unwrap();
    if landlock.status != vm::Status::Ok {
        eprintln!("skipped: this kernel's Landlock has no scopes");
        return;
    }
    for options in [FULL, FULL_ROOT] {
        bench.must_hold(bench.inside(options, &["abstract", &name]));
    }
}

fn keys_are_out_of_reach(bench: &Bench) {
    let with_key = |command: Command| {
        let mut args = vec!["inside".to_owned(), "with-key".to_owned(), "turbo-escape".to_owned(), command.get_program().to_str().unwrap().to_owned()];
        args.extend(command.get_args().map(|arg| arg.to_str().unwrap().to_owned()));
        bench.as_user(&bench.text("run"), &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let attack = ["key", "turbo-escape"];
    if with_key(bench.outside(&attack)).output().unwrap().status.code() == Some(99) {
        eprintln!("skipped: this kernel has no keys");
        return;
    }
    assert!(bench.must_reach(with_key(bench.outside(&attack))).contains(SECRET));
    for options in [FULL, FULL_ROOT, &[], &["--root"]] {
        bench.must_hold(with_key(bench.inside(options, &attack)));
    }
}

fn chroot_does_not_lead_out(bench: &Bench) {
    let secret = bench.secret();
    if rustix::process::getuid().is_root() && bench.user.is_none() {
        bench.must_reach(bench.outside(&["chroot", &secret]));
    }
    let said = bench.must_hold(bench.inside(FULL_ROOT, &["chroot", &secret]));
    assert!(said.contains("out of the jail, but not of the VM"), "the attack itself works: {said}");
    let hiding = bench.hiding();
    bench.must_hold(bench.inside(&["--root", &hiding[0], &hiding[1]], &["chroot", &secret]));
}

fn kernel_switches_are_read_only(bench: &Bench) {
    if bench.user.is_none() && rustix::process::getuid().is_root() {
        bench.must_reach(bench.outside(&["switches"]));
        // Root's write-copy does not write to the machine either.
        bench.must_hold(bench.inside(&[], &["switches"]));
        bench.must_hold(bench.inside(&[], &["uncover", "/sys"]));
    }
    for options in [FULL, FULL_ROOT] {
        bench.must_hold(bench.inside(options, &["switches"]));
        bench.must_hold(bench.inside(options, &["fuse-device"]));
        bench.must_hold(bench.inside(options, &["write", "/sys/fs/cgroup/cgroup.procs"]));
    }
}

fn listed_system_calls_are_refused(bench: &Bench) {
    bench.must_reach(bench.outside(&["calls"]));
    for options in [FULL, FULL_ROOT] {
        bench.must_hold(bench.inside(options, &["calls"]));
    }
    // In write-copy io_uring is there, and nothing else.
    let said = bench.must_reach(bench.inside(&[], &["calls"]));
    assert!(said.contains("io_uring_setup") && said.matches(": Err").count() == 1, "{said}");
}

fn races_do_not_lead_out(bench: &Bench) {
    let (open, hidden) = (bench.text("open"), bench.text("hidden"));
    bench.must_reach(bench.outside(&["race", &open, &open, &hidden]));
    // The folder once as the host's view shows it, and once writable: what changes there changes under the server's hands.
    let mount = format!("{open}=/mnt");
    let hiding = bench.hiding();
    for more in [&[][..], &["--root"]] {
        let options = [&["--mount", &mount, &hiding[0], &hiding[1]], more].concat();
        bench.must_hold(bench.inside(&options, &["race", "/mnt", &open, &hidden]));
    }
}

fn other_names_do_not_lead_out(bench: &Bench) {
    // The rule names the folder through a link; the attacker takes the real path.
    symlink(bench.dir.path(), bench.path("alias")).unwrap();
    let secret = bench.secret();
    bench.must_reach(bench.inside(&[], &["read", &secret]));
    let rule = format!("{}/hidden=full", bench.text("alias"));
    for more in [&[][..], &["--root"]] {
        bench.must_hold(bench.inside(&[&["--path", &rule], more].concat(), &["read", &secret]));
    }
}

fn the_application_has_no_privileges(bench: &Bench) {
    let (run, sandbox) = (bench.text("run"), bench.text("sandbox"));
    let field = |options: &[&str], name: &str| {
        let all = [&["child", "--sandbox", &sandbox], options, &["--", "/usr/bin/grep", name, "/proc/self/status"]].concat();
        let output = bench.as_user(&run, &all).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).unwrap_or_else(|| panic!("{}", said(&output))).to_owned()
    };
    let visible = ["--mode", "full", "--path", "/bin=write-copy", "--path", "/usr=write-copy", "--path", "/lib=write-copy", "--path", "/lib64=write-copy"];
    for options in [&[][..], &visible] {
        assert_eq!((field(options, "NoNewPrivs"), field(options, "Seccomp:")), ("1".to_owned(), "2".to_owned()));
        if bench.user.is_some() {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&field(options, set), 16), Ok(0), "{set}");
            }
        }
    }
    // As uid 0 of a full VM: without rights over mounts, namespaces and other processes.
    let held = u64::from_str_radix(&field(&[&visible[..], &["--root"]].concat(), "CapBnd"), 16).unwrap();
    for (name, number) in [("SYS_ADMIN", 21), ("SYS_PTRACE", 19), ("NET_ADMIN", 12), ("SYS_RESOURCE", 24), ("DAC_READ_SEARCH", 2)] {
        assert_eq!(held >> number & 1, 0, "{name}");
    }
    assert_eq!(held & 1, 1, "CHOWN, for package managers");
}

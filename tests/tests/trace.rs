//! Recordings of launches, as a user makes, reads and draws them, and what `--verbose` shows meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration_tests::turbo::{can_run, own};
use integration_tests::{Home, Proxy, Pty, TestRegistry, rootfs};
use layer_format::recording::Recording;
use layer_format::trace::Trace;
use serde_json::Value;

/// A file whose name would be markup if nobody minded.
const HOSTILE: &str = "data/<script>alert(1)<'\"&b>.txt";

struct Place {
    registry: TestRegistry,
    _developer: Home,
}

impl Place {
    /// An image that runs a shell, which starts a program that reads many files.
    fn new() -> Option<Self> {
        if !can_run() {
            return None;
        }
        let registry = TestRegistry::start();
        let developer = Home::new(registry.url());
        let root = developer.path().join("root");
        rootfs::build(&root, &["sh", "cat", "sleep", "stty"]);
        developer.give_away(&root.join("usr/bin/sh"));
        for number in 0..20u32 {
            let content: Vec<u8> = (0..20_000u32).flat_map(|n| (n ^ number).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            developer.file(&format!("root/data/{number}.bin"), content);
        }
        developer.file(&format!("root/{HOSTILE}"), vec![b'x'; 300_000]);
        developer.file("root/main.sh", "cat /data/* > /dev/null\necho the-end\n");
        for path in walk(&root) {
            own(&path);
        }
        let arguments = ["import", "dir", root.to_str()?, "--name", "t/app:1.0", "--isolate", "/=full", "--startup-file", "/bin/sh /main.sh"];
        developer.turbo(arguments).ok();
        developer.turbo(["push", "t/app:1.0"]).ok();
        Some(Self { registry, _developer: developer })
    }

    /// A proxy to the registry over which an answer takes this long.
    fn far(&self, delay_ms: u64) -> Proxy {
        let proxy = Proxy::to(self.registry.address());
        proxy.delay(Duration::from_millis(delay_ms));
        proxy
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut at = 0;
    while at < found.len() {
        if found[at].is_dir() && !found[at].is_symlink() {
            let inside: Vec<_> = std::fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap().path()).filter(|path| !path.is_symlink()).collect();
            found.extend(inside);
        }
        at += 1;
    }
    found
}

fn result(home: &Home, arguments: &[&str]) -> Value {
    home.turbo(arguments.iter().chain(&["--format", "json"])).ok().json()["result"].take()
}

#[test]
fn a_launch_is_recorded_told_replayed_and_drawn() {
    let Some(place) = Place::new() else { return };
    let proxy = place.far(20);
    let user = Home::new(proxy.url());
    let outcome = user.turbo(["trace", "record", "t/app"]).ok();
    assert_eq!(outcome.stdout, "the-end\n", "the application's output is its own");
    assert!(outcome.stderr.contains("turbo trace show") && outcome.stderr.contains("app.trace"), "{}", outcome.stderr);
    let file = user.path().join("app.trace");
    let recording = Recording::decode(&std::fs::read(&file).unwrap()).unwrap();
    let timeline = recording.timeline.as_ref().unwrap();
    let names: Vec<&str> = timeline.processes.iter().map(|process| process.name.as_str()).collect();
    assert!(names.contains(&"cat") && names.contains(&"sh"), "{names:?}");
    let cat = timeline.processes.iter().find(|process| process.name == "cat").unwrap();
    assert_eq!(cat.parent.map(|parent| timeline.processes[usize::from(parent)].name.as_str()), Some("sh"));

    let shown = result(&user, &["trace", "show", "app.trace"]);
    assert_eq!(shown["events"].as_array().unwrap().len(), recording.trace.events.len());
    let (summary, marks) = (&shown["summary"], shown["timeline"]["marks"].as_array().unwrap());
    assert_eq!(marks.iter().map(|mark| mark["what"].as_str().unwrap()).collect::<Vec<_>>(), ["manifest", "mounted", "started", "exited"]);
    assert!(marks.is_sorted_by_key(|mark| mark["time_us"].as_u64()));
    assert!(summary["waiting_us"].as_u64() > Some(20_000) && summary["waiting_us"].as_u64() <= summary["total_us"].as_u64(), "{summary}");
    assert!(summary["received_bytes"].as_u64() > Some(1_000_000), "{summary}");
    let text = user.turbo(["trace", "show", "app.trace"]).ok().stdout;
    assert!(text.contains("of which") && text.contains("WAITED") && text.contains("cat") && text.lines().count() < 60, "{text}");
    assert!(user.turbo(["trace", "show", "app.trace", "--events"]).ok().stdout.lines().count() > recording.trace.events.len());

    // A second run has a model, and what it has of an image is told by its name.
    let again = Home::new(proxy.url());
    again.turbo(["run", "t/app"]).ok();
    let bare = result(&again, &["trace", "show", "t/app"]);
    assert!(bare["timeline"].is_null() && bare["summary"]["waiting_us"].is_null() && bare["events"].as_array().is_some_and(|events| !events.is_empty()));
    assert_eq!(again.turbo(["trace", "show", "t/none"]).code, Some(125));

    user.turbo(["trace", "record", "--warm", "--output", "warm.trace", "--temp", "t/app"]).ok();
    let warm = result(&user, &["trace", "show", "warm.trace"]);
    assert_eq!((&warm["summary"]["waiting_us"], &warm["summary"]["received_bytes"]), (&Value::from(0), &Value::from(0)), "{}", warm["summary"]);

    let rows = result(&user, &["trace", "replay", "warm.trace", "--link", "100ms/100Mbit", "--link", "1ms/1Gbit", "--image", "t/app"])["replays"].take();
    let launch = |link: &str, policy: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["link"] == link && row["policy"] == policy);
        row.unwrap_or_else(|| panic!("no {link} {policy}: {rows}"))["launch_us"].as_u64().unwrap()
    };
    assert!(launch("100ms/100Mbit", "oracle") <= launch("100ms/100Mbit", "one by one"));
    assert!(launch("100ms/100Mbit", "model") < launch("100ms/100Mbit", "one by one") / 2, "{rows}");
    assert!(launch("1ms/1Gbit", "one by one") < launch("100ms/100Mbit", "one by one"));
    // As a table, of a bare trace, over the links of the product's own choice.
    let bare = user.file("bare.trace", recording.trace.encode());
    assert!(user.turbo(["trace", "replay", bare.to_str().unwrap()]).ok().stdout.lines().count() > 10);

    page(&user, &file);
    for (name, damaged) in [("cut", &recording.encode()[..200]), ("empty", b""), ("other", b"TBRC\x09")] {
        let damaged = user.file(name, damaged);
        let outcome = user.turbo(["trace", "show", damaged.to_str().unwrap(), "--html", "-"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(125), ""), "{name}: {}", outcome.stderr);
    }
}

/// Draws the recording, and looks at the page with a browser if there is one.
fn page(user: &Home, file: &Path) {
    user.turbo(["trace", "show", file.to_str().unwrap(), "--html"]).ok();
    let path = file.with_extension("html");
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.contains("Launch of <b>t/app") && page.contains("</html>"), "{}", &page[..2000]);
    assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(1)"), "names are text");
    assert_eq!(user.turbo(["trace", "show", file.to_str().unwrap(), "--html", "-"]).ok().stdout, page, "the same bytes each time");
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| Command::new(name).arg("--version").output().is_ok()) else {
        eprintln!("skipped: there is no chromium to render the page with");
        return;
    };
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000", "--window-size=375,800"]);
    command.arg(format!("--user-data-dir={}", profile.path().display())).arg("--dump-dom").arg(format!("file://{}", path.display()));
    let output = command.output().unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        eprintln!("skipped: {browser} does not work here: {log}");
        return;
    }
    assert!(!log.contains("CONSOLE"), "the page has nothing to complain about: {log}");
    // The script ran, as the page's policy allows: it shows what works with it alone.
    assert!(dom.contains("<div class=\"tools\">"), "the tools are shown");
}

#[test]
fn what_the_registry_gets_is_a_trace_and_no_timeline() {
    let Some(place) = Place::new() else { return };
    let user = Home::new(place.registry.url());
    user.turbo(["run", "--trace", "full", "t/app"]).ok();
    let full = std::fs::read(user.path().join("full")).unwrap();
    assert!(Recording::decode(&full).unwrap().timeline.is_some() && Trace::decode(&full).is_err());
    // What is kept beside the store is what was sent.
    let kept = std::fs::read(user.store().join("traces/t+app")).unwrap();
    assert_eq!(Trace::decode(&kept).as_ref(), Ok(&Recording::decode(&full).unwrap().trace));
    // A registry takes no recording, even if someone sends it one.
    let post = |body: Vec<u8>| {
        let url = format!("{}/v1/repositories/t/app/-/traces", place.registry.url());
        let request = async move { reqwest::Client::new().post(url).header("content-type", "application/vnd.turbo.trace").body(body).send().await };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(request).unwrap().status().as_u16()
    };
    assert_eq!((post(kept), post(full)), (202, 400));
}

#[test]
fn verbose_prints_lines_where_nobody_looks_and_a_summary() {
    let Some(place) = Place::new() else { return };
    let proxy = place.far(50);
    let user = Home::new(proxy.url());
    let outcome = user.turbo(["run", "--verbose", "t/app"]).ok();
    assert_eq!(outcome.stdout, "the-end\n");
    let said: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("turbo: ")).collect();
    assert!(!outcome.stderr.contains('\u{1b}') && !outcome.stderr.contains('\r'), "{:?}", outcome.stderr);
    assert!(said.len() >= 2 && said.iter().any(|line| line.contains("waiting 0.") || line.contains("waiting 1.")), "{said:?}");
    assert!(said.last().unwrap().contains("of touches were there in time"), "{said:?}");
    let seconds = said[said.len() - 2].trim_start_matches("turbo: ").split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(said.len() as f64 <= seconds + 2.0, "at most one a second: {said:?}");
    let quiet = Home::new(place.registry.url());
    assert!(!quiet.turbo(["run", "t/app"]).ok().stderr.contains("turbo: "), "nobody asked");
}

#[test]
fn verbose_draws_on_a_terminal_only_while_something_is_waited_for() {
    let Some(place) = Place::new() else { return };
    // (what the program does first, whether it draws itself)
    for (first, is_raw) in [("true", false), ("stty raw", true)] {
        let proxy = place.far(300);
        let user = Home::new(proxy.url());
        let script = format!("/bin/sh -c \"{first}; echo be''fore; read x; cat /data/* > /dev/null; echo af''ter; stty sane\"");
        let mut command = user.command(["run", "--verbose", "--no-model", "--startup-file", &script, "t/app"]);
        command.env("TERM", "xterm");
        if !is_raw {
            command.env("NO_COLOR", "1");
        }
        let mut pty = Pty::start(&command);
        let asking = pty.expect("for the image");
        assert!(asking.contains("turbo: 0.") && asking.contains("\u{1b}[2m") == is_raw, "{asking:?}");
        proxy.delay(Duration::ZERO);
        let start = pty.expect("before");
        assert!(start.contains("\r\u{1b}[K"), "the line is gone before the program starts: {start:?}");
        // `cat` itself must be here, or be fetched fast: only the files are slow.
        proxy.delay(Duration::from_millis(90));
        pty.send(if is_raw { "\r\n" } else { "\n" });
        let between = pty.expect("after");
        if is_raw {
            assert!(!between.contains("turbo: "), "a program that draws itself is left alone: {between:?}");
        } else {
            // Drawn behind the cursor, which comes back; and taken away before the program goes on.
            assert!(between.contains("\u{1b}7\u{1b}[?7lturbo: ") && between.contains("waiting "), "{between:?}");
            assert!(between.ends_with("\u{1b}8\u{1b}[K"), "{between:?}");
        }
        proxy.delay(Duration::ZERO);
        pty.expect("of touches were there in time");
        assert_eq!(pty.wait().code(), Some(0));
    }
}

#[test]
fn a_recording_needs_an_end() {
    let home = Home::offline();
    assert_eq!(home.turbo(["trace", "record", "--detach", "t/app"]).code, Some(2));
    assert_eq!(home.turbo(["trace", "replay", "x", "--link", "fast"]).code, Some(2));
    assert_eq!(home.turbo(["trace", "show"]).code, Some(2));
    // Nothing of the sort is made by looking at a file that is not there.
    assert_eq!(home.turbo(["trace", "show", "none.trace"]).code, Some(125));
}

//! `turbo doctor`.

use std::time::Duration;

use anyhow::Result;
use vm::{Finding, Status};

use crate::app::App;
use crate::exit::Exit;

/// How long the registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Say whether this machine can run images, and what to do if not.
///
/// Every thing that turbo needs is tried, as the user who asks. Ends with 0 if images can be run, else with 125; what is
/// degraded, or missing without being needed, is a warning. A registry that does not answer is a failure (125) if one is
/// configured (--hub, TURBO_HUB or the configuration file), otherwise a warning.
#[derive(Debug, clap::Args)]
pub struct Doctor {}

impl Doctor {
    /// Tries, asks, and reports.
    pub fn run(self, app: &App) -> Result<Exit> {
        let executable = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/turbo".into());
        // Before the registry is asked: that starts threads.
        let mut findings = vm::examine(&app.settings.home.join("containers"), &executable);
        findings.push(registry(app));
        findings.push(packages());
        let report = Report::new(&findings, app.settings.hub_configured);
        let list: Vec<_> = findings.iter().map(json).collect();
        let value = serde_json::json!({"ok": report.exit == Exit::Success, "findings": list, "works": report.works, "fails": report.fails});
        app.output.result(&value, |out| {
            for finding in &findings {
                writeln!(out, "{:16} {:8}  {}", finding.name, finding.status, vm::printable(&finding.detail))?;
                if finding.status == Status::Ok {
                    continue;
                }
                let needed = if finding.needed { "; nothing runs without it" } else { "" };
                writeln!(out, "{:27}for: {}{needed}", "", finding.purpose)?;
                for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
                    // Not indented: it is there to be copied, and may contain a document of several lines.
                    writeln!(out, "{line}")?;
                }
            }
            writeln!(out)?;
            for text in &report.works {
                writeln!(out, "works: {text}")?;
            }
            for text in &report.fails {
                writeln!(out, "does not work: {text}")?;
            }
            Ok(())
        })?;
        Ok(report.exit)
    }
}

fn json(finding: &Finding) -> serde_json::Value {
    serde_json::json!({
        "name": finding.name,
        "status": finding.status.to_string(),
        "needed": finding.needed,
        "purpose": finding.purpose,
        "detail": finding.detail,
        "remedy": finding.remedy,
    })
}

/// What follows from the findings.
struct Report {
    works: Vec<&'static str>,
    fails: Vec<&'static str>,
    exit: Exit,
}

impl Report {
    fn new(findings: &[Finding], hub_configured: bool) -> Self {
        let there = |name: &str| findings.iter().any(|finding| finding.name == name && finding.status == Status::Ok);
        let mut report = Self { works: Vec::new(), fails: Vec::new(), exit: Exit::Success };
        let runs = !findings.iter().any(Finding::prevents_runs);
        let registry = there("registry");
        report.say(
            there("home") || !findings.iter().any(|finding| finding.name == "home" && finding.prevents_runs()),
            "import, export, images, inspect, verify, gc, stats and rmi, which need nothing but the home folder",
        );
        report.say(registry, "push, pull, and fetching while an application runs, which need the registry");
        report.say(runs, "run and try, which need namespaces, FUSE and overlayfs");
        if runs {
            report.say(there("devpts"), "run and try of images whose root is full");
            if !registry {
                report.works.push("run and try --offline of images that are complete here");
            }
        }
        report.say(there("apt"), "import deb, which needs apt and dpkg-deb");
        if !runs || (hub_configured && !registry) {
            report.exit = Exit::Failure;
        }
        report
    }

    fn say(&mut self, works: bool, text: &'static str) {
        if works { self.works.push(text) } else { self.fails.push(text) }
    }
}

fn registry(app: &App) -> Finding {
    let hub = &app.settings.hub;
    let finding = Finding::ok("registry", "keeps images for others, and is fetched from", format!("{hub} answers"));
    let ask = || -> Result<()> {
        let registry = app.registry()?;
        app.block_on(async move { tokio::time::timeout(PATIENCE, registry.capabilities()).await })???;
        Ok(())
    };
    let Err(error) = ask().map_err(|error| format!("{error:#}")) else { return finding };
    let finding = Finding { detail: format!("{hub} does not answer: {error}"), ..finding };
    if app.settings.hub_configured {
        finding.but(Status::Missing, format!("see whether it runs (curl {hub}/v1/capabilities), or configure another: turbo config --hub URL"))
    } else {
        Finding { detail: format!("none is configured, and none runs on this machine ({hub})"), ..finding }
            .but(Status::Degraded, "configure one: turbo config --hub URL; or start one here: turbo-registry serve")
    }
}

/// What `import deb` calls.
fn packages() -> Finding {
    let finding = Finding::ok("apt", "import deb", "apt-get and dpkg-deb are there");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let lacking: Vec<&str> = ["apt-get", "dpkg-deb"].into_iter().filter(|name| !there(name)).collect();
    if lacking.is_empty() {
        return finding;
    }
    let detail = format!("{} {} not there", lacking.join(" and "), if lacking.len() == 1 { "is" } else { "are" });
    Finding { detail, ..finding }.but(Status::Missing, "import packages on a machine with Debian or Ubuntu, and push the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(name: &'static str, status: Status) -> Vec<Finding> {
        let all = ["fuse", "user-namespaces", "devpts", "home", "registry", "apt"];
        let make = |other: &'static str| {
            let finding = Finding::ok(other, "", "");
            let finding = if ["fuse", "user-namespaces", "home"].contains(&other) { finding.needed() } else { finding };
            if other == name { finding.but(status, "") } else { finding }
        };
        all.into_iter().map(make).collect()
    }

    #[test]
    fn only_what_is_needed_prevents_runs() {
        for (name, status, configured, exit, fails) in [
            ("none", Status::Ok, true, Exit::Success, 0),
            ("fuse", Status::Missing, true, Exit::Failure, 1),
            ("user-namespaces", Status::Missing, false, Exit::Failure, 1),
            ("home", Status::Degraded, true, Exit::Success, 0),
            ("home", Status::Missing, true, Exit::Failure, 2),
            ("devpts", Status::Degraded, true, Exit::Success, 1),
            ("apt", Status::Missing, true, Exit::Success, 1),
            ("registry", Status::Missing, true, Exit::Failure, 1),
            ("registry", Status::Degraded, false, Exit::Success, 1),
        ] {
            let report = Report::new(&findings(name, status), configured);
            assert_eq!((report.exit, report.fails.len()), (exit, fails), "{name} {status}: {:?}", report.fails);
        }
    }
}

//! A launch over a link that loses packets. Needs root or user namespaces and `/dev/net/tun`; without them it says so.

use std::process::{Command, Stdio};
use std::time::Duration;

use benchmarks::link::{Link, LinkSpec, Side};
use integration_tests::binaries::test_user;
use integration_tests::taught::{RUN, publish};
use integration_tests::turbo::can_run;
use integration_tests::{Home, Outcome, Proxy};

#[test]
fn a_link_that_loses_packets() {
    if !can_run() {
        return;
    }
    let mut spec = LinkSpec::symmetric(50_000_000, Duration::from_millis(10));
    (spec.down.loss, spec.up.loss) = (0.01, 0.01);
    let link = match Link::up(&spec) {
        Ok(link) => link,
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return;
        }
    };
    let published = publish();
    let proxy = Proxy::between(link.listen(Side::Server, 0).unwrap(), published.registry.address());
    let user = Home::new(proxy.url());
    let outcome = Outcome::from(at_the_client(&link, user.command(RUN)).output().unwrap()).ok();
    assert_eq!(outcome.stdout, published.expected);
    assert!(link.stats().down.loss_drops > 0, "{:?}", link.stats());
}

/// The same command at the client's end of the link. Its user changes only there: entering needs a privilege.
fn at_the_client(link: &Link, command: Command) -> Command {
    let mut inner = match test_user() {
        Some((uid, gid)) => {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups", "--"]).arg(command.get_program());
            setpriv
        }
        None => Command::new(command.get_program()),
    };
    inner.args(command.get_args()).env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inner.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
    link.command(Side::Client, inner).unwrap()
}

//! Startup and shutdown scripts, run by pid 1 one after the other.

use rustix::io::Errno;
use rustix::process::WaitStatus;

use super::protocol::{Failure, Plan, Step};
use super::supervise::{Streams, Supervisor};

/// Variable in which shutdown scripts find how the application ended.
const EXIT_CODE: &[u8] = b"TURBO_EXIT_CODE";

/// Runs the startup scripts. The first that fails is the failure of the launch.
pub(crate) fn startup(supervisor: &mut Supervisor<'_>, plan: &Plan) -> Result<(), Failure> {
    for script in &plan.startup_scripts {
        let one = Plan { argv: script.clone(), terminal: false, ..plan.clone() };
        run(supervisor, &one).map_err(|problem| Failure { path: shown(script), ..Failure::new(Step::Script(problem), Errno::CANCELED) })?;
    }
    Ok(())
}

/// Runs all shutdown scripts, and returns what went wrong with them.
pub(crate) fn shutdown(supervisor: &mut Supervisor<'_>, plan: &Plan, ended: WaitStatus) -> Vec<String> {
    if plan.shutdown_scripts.is_empty() {
        return Vec::new();
    }
    supervisor.kill_all();
    let code = ended.exit_status().unwrap_or_else(|| 128 + ended.terminating_signal().unwrap_or(0));
    let mut env = plan.env.clone();
    env.retain(|variable| !variable.strip_prefix(EXIT_CODE).is_some_and(|rest| rest.starts_with(b"=")));
    env.push([EXIT_CODE, code.to_string().as_bytes()].join(&b'='));
    let outcomes = plan.shutdown_scripts.iter().map(|script| {
        let one = Plan { argv: script.clone(), env: env.clone(), terminal: false, ..plan.clone() };
        let outcome = run(supervisor, &one).map_err(|problem| format!("the shutdown script `{}` {problem}", shown(script)));
        // Nothing outlives the VM: what the script left behind must not disturb the next one.
        supervisor.kill_all();
        outcome
    });
    outcomes.filter_map(Result::err).collect()
}

/// Runs one script. What is wrong, if something is: the end of a sentence.
fn run(supervisor: &mut Supervisor<'_>, plan: &Plan) -> Result<(), String> {
    let process = supervisor.spawn(plan, Streams::Aside, || Ok(())).map_err(|failure| cannot(&failure))?;
    let status = supervisor.attend(process, || ()).map_err(|failure| cannot(&failure))?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("ended with code {code}")),
        (None, signal) => Err(format!("was killed by signal {}", signal.unwrap_or(0))),
    }
}

fn cannot(failure: &Failure) -> String {
    match failure.errno {
        libc::ENOENT | libc::ENOTDIR if matches!(failure.step, Step::Exec) => "was not found in the VM".to_owned(),
        errno => format!("cannot be executed: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

fn shown(script: &[Vec<u8>]) -> String {
    script.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join(" ")
}

//! Control of a VM from other threads than the one that waits for its end: signals, stopping and starting everything in it,
//! and who uses it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::VmError;
use crate::ns::protocol::{ToVm, send};

/// How long pid 1 may take to stop or start all processes.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);

/// Controls a VM from any thread, while another one is in [`crate::Running::wait`].
#[derive(Clone, Debug)]
pub struct Control {
    socket: Arc<Mutex<UnixStream>>,
    answers: Arc<Answers>,
}

/// What is known of a VM: what pid 1 answered to [`Control`], and who uses it.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Held by whoever asks: one question at a time.
    asking: Mutex<()>,
    last: Mutex<Answer>,
    change: Condvar,
}

#[derive(Debug, Default)]
struct Answer {
    frozen: Option<usize>,
    thawed: bool,
    /// The VM has ended.
    ended: bool,
    /// Whether all processes were stopped by [`Control::freeze`].
    is_frozen: bool,
    /// How many use the VM besides the application.
    leases: usize,
    application_ended: bool,
    /// The VM was told to end.
    finishing: bool,
}

/// The right to use a VM: while there is one, the end of the application does not end the VM. See [`Control::lease`].
#[derive(Debug)]
pub struct Lease {
    control: Control,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_last = {
            let mut last = self.control.answers.last.lock();
            last.leases -= 1;
            last.is_over()
        };
        if is_last {
            let _ = self.control.tell(&ToVm::Finish);
        }
    }
}

impl Answer {
    /// Whether no one uses the VM any more: asked once, when that becomes true.
    fn is_over(&mut self) -> bool {
        let over = self.application_ended && self.leases == 0 && !self.finishing;
        self.finishing |= over;
        over
    }
}

impl Control {
    /// Has the VM ask the host's filesystem anew about names.
    pub(crate) fn refresh(&self) {
        let _ = self.tell(&ToVm::Refresh);
    }

    pub(crate) fn new(socket: UnixStream, answers: Arc<Answers>) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)), answers }
    }

    /// Sends a message, whole.
    pub(crate) fn tell(&self, message: &ToVm) -> io::Result<()> {
        send(&self.socket.lock(), message)
    }

    /// Sends a signal to the application (not to its children). Without effect after its end.
    pub fn kill(&self, signal: i32) {
        let _ = self.tell(&ToVm::Signal(signal));
    }

    /// Sends a signal to the application and to all programs that joined.
    pub fn stop(&self, signal: i32) {
        let _ = self.tell(&ToVm::Stop(signal));
    }

    /// Kills all that runs in the VM and ends it, with its shutdown scripts; called again, kills the script that runs.
    pub fn end(&self) {
        self.answers.last.lock().finishing = true;
        let _ = self.tell(&ToVm::Finish);
    }

    /// Keeps the VM from ending with the application, as long as the lease lives: for a program that joins. `None` if the VM
    /// ends already.
    pub fn lease(&self) -> Option<Lease> {
        let mut last = self.answers.last.lock();
        if last.finishing || last.ended {
            return None;
        }
        last.leases += 1;
        Some(Lease { control: self.clone() })
    }

    /// Stops every process of the VM, those that joined included, until [`Control::thaw`]. Returns how many threads do not
    /// stand yet, because they wait for the disk or the network: each stops at the end of that wait, before it does anything
    /// else. Does nothing more if all are stopped already.
    ///
    /// # Errors
    /// [`VmError::Ended`] if the application has ended, or pid 1 does not answer.
    pub fn freeze(&self) -> Result<usize, VmError> {
        self.ask(&ToVm::Freeze, |answer| {
            let left = answer.frozen.take()?;
            answer.is_frozen = true;
            Some(left)
        })
    }

    /// Lets what [`Control::freeze`] stopped go on.
    ///
    /// # Errors
    /// As [`Control::freeze`].
    pub fn thaw(&self) -> Result<(), VmError> {
        self.ask(&ToVm::Thaw, |answer| {
            let thawed = std::mem::take(&mut answer.thawed);
            answer.is_frozen &= !thawed;
            thawed.then_some(())
        })
    }

    /// Whether [`Control::freeze`] was called, and [`Control::thaw`] was not since.
    pub fn is_frozen(&self) -> bool {
        self.answers.last.lock().is_frozen
    }

    fn ask<T>(&self, question: &ToVm, mut answered: impl FnMut(&mut Answer) -> Option<T>) -> Result<T, VmError> {
        let _one = self.answers.asking.lock();
        let until = Instant::now() + FREEZE_LIMIT;
        {
            let mut last = self.answers.last.lock();
            (last.frozen, last.thawed) = (None, false);
        }
        self.tell(question).map_err(|_| VmError::Ended)?;
        let mut last = self.answers.last.lock();
        loop {
            if let Some(answer) = answered(&mut last) {
                return Ok(answer);
            }
            if last.ended || self.answers.change.wait_until(&mut last, until).timed_out() {
                return Err(VmError::Ended);
            }
        }
    }
}

impl Answers {
    /// Whether the VM is to end, and by how many it is still used.
    pub(crate) fn application_ended(&self) -> (bool, usize) {
        let mut last = self.last.lock();
        last.application_ended = true;
        (last.is_over(), last.leases)
    }

    pub(crate) fn frozen(&self, left: usize) {
        self.note(|answer| answer.frozen = Some(left));
    }

    pub(crate) fn thawed(&self) {
        self.note(|answer| answer.thawed = true);
    }

    pub(crate) fn ended(&self) {
        self.note(|answer| answer.ended = true);
    }

    fn note(&self, change: impl FnOnce(&mut Answer)) {
        change(&mut self.last.lock());
        self.change.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::protocol::receive;

    fn control() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Control::new(ours, Arc::default()), theirs)
    }

    fn told_to_finish(vm: &UnixStream) -> bool {
        matches!(receive(vm), Ok(Some(ToVm::Finish)))
    }

    #[test]
    fn the_last_user_ends_the_vm_whoever_it_is() {
        let (control, vm) = control();
        let (one, two) = (control.lease().unwrap(), control.lease().unwrap());
        drop(one);
        assert_eq!(control.answers.application_ended(), (false, 1));
        let late = control.lease().expect("whoever comes while it is in use joins");
        drop(two);
        assert!(!told_to_finish(&vm), "one still uses it");
        drop(late);
        assert!(told_to_finish(&vm));
        assert!(control.lease().is_none(), "it ends");
        let (control, vm) = self::control();
        drop(control.lease());
        assert!(!told_to_finish(&vm), "the application still runs");
        assert_eq!(control.answers.application_ended(), (true, 0), "whoever asks must say so to the VM");
        assert!(control.lease().is_none());
    }

    #[test]
    fn an_end_by_force_is_not_undone_by_a_user_who_leaves() {
        let (control, vm) = control();
        let lease = control.lease();
        control.end();
        assert!(told_to_finish(&vm));
        control.answers.application_ended();
        drop(lease);
        assert!(!told_to_finish(&vm), "once is enough");
    }

    #[test]
    fn questions_to_a_vm_that_ends_are_answered() {
        let (control, _vm) = control();
        let asking = std::thread::spawn({
            let control = control.clone();
            move || control.freeze()
        });
        control.answers.ended();
        assert!(matches!(asking.join().unwrap(), Err(VmError::Ended)));
        assert!(!control.is_frozen());
    }
}

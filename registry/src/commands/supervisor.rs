//! What systemd is told (`Type=notify`): ready, reloading, stopping, and, with a watchdog, that the program still moves. Without
//! systemd (no `NOTIFY_SOCKET`) nothing is sent.

use sd_notify::NotifyState;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "could not tell systemd");
    }
}

/// Requests are answered from now on.
pub(crate) fn ready(address: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving on {address}"))]);
}

/// No more requests are taken; those in progress end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("waiting for requests in progress")]);
}

/// What `systemctl reload` asks for: `reload` runs between the two messages that tell so.
pub(crate) fn reloading(reload: impl FnOnce()) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "could not tell systemd"),
    }
    reload();
    tell(&[NotifyState::Ready]);
}

/// Answers systemd's watchdog at half its interval, as long as the runtime gets around to it. It does not ask the database: a
/// server whose database is away for a moment must not be restarted for that.
pub(crate) fn answer_watchdog() {
    if let Some(interval) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval / 2);
            loop {
                ticks.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

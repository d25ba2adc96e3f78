//! Word to systemd (`sd_notify(3)`); nothing happens where it is not there.

use host::Host;
use sd_notify::NotifyState;

/// Requests are served from now on.
pub(crate) fn ready(text: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// The daemon ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending; machines go on")]);
}

/// A line for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Shows that the daemon works as long as its registry answers; for ever, or at once when nobody looks.
pub(crate) async fn watchdog(host: Host) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(limit / 2);
    loop {
        ticks.tick().await;
        if host.events_after(u64::MAX).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

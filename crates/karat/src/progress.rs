//! Long work as it goes: a bar where stderr is a terminal, nothing elsewhere.

use std::time::Duration;

use api_types::Operation;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar for one operation.
pub(crate) struct Progress {
    bar: ProgressBar,
    subject: String,
}

/// How often the bar moves on its own, so that a person sees that something lives.
const TICK: Duration = Duration::from_millis(120);

impl Progress {
    /// For work on `subject`. indicatif draws to stderr, and only to a terminal.
    pub(crate) fn new(subject: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        bar.set_message(subject.to_owned());
        Self {
            bar,
            subject: subject.to_owned(),
        }
    }

    /// Shows how far the operation is.
    pub(crate) fn show(&self, operation: &Operation) {
        let Some(progress) = &operation.progress else { return };
        self.bar.set_message(format!("{} {}", self.subject, progress.step));
        let template = match progress.total_bytes {
            Some(total) => {
                self.bar.set_length(total);
                "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}"
            }
            None => "{spinner} {msg} {bytes}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.set_position(progress.done_bytes);
    }
}

/// A bar for bytes that are sent from here. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Sending(ProgressBar);

impl Sending {
    /// For `name`, of whose `length` bytes `first` are there already.
    pub(crate) fn new(name: &str, first: u64, length: u64) -> Self {
        let bar = ProgressBar::new(length);
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(format!("sending {name}"));
        bar.set_position(first);
        bar.reset_eta();
        Self(bar)
    }

    /// So many bytes were handed over.
    pub(crate) fn show(&self, sent: u64) {
        self.0.set_position(sent);
        if Some(sent) == self.0.length() {
            self.0.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

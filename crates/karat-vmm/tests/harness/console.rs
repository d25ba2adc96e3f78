//! A reader of the console.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A connection to the console socket, and what came over it so far.
pub(crate) struct Console {
    socket: UnixStream,
    pub(crate) seen: String,
}

impl Console {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self {
            socket,
            seen: String::new(),
        }
    }

    /// Sends to the guest.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// Reads what has come; false at the end.
    pub(crate) fn read(&mut self) -> bool {
        let mut bytes = [0; 65536];
        match self.socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("console: {error}"),
        }
    }

    /// Reads until `text` has come.
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_within(text, PATIENCE);
    }

    /// Reads until `text` has come, which takes up to `limit`.
    pub(crate) fn wait_within(&mut self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} on the console:\n{}", self.seen);
            assert!(
                self.read() || self.seen.contains(text),
                "console ended without {text:?}:\n{}",
                self.seen
            );
        }
    }

    /// Reads until the machine process closes it.
    pub(crate) fn wait_for_end(&mut self) -> &str {
        let deadline = Instant::now() + PATIENCE;
        while self.read() {
            assert!(Instant::now() < deadline, "console does not end:\n{}", self.seen);
        }
        &self.seen
    }
}

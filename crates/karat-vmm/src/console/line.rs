//! The serial line between vCPU threads, which must not wait, and the console's thread, which may.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::bell::Bell;
use chipset::{Serial, SerialPeer};

/// Output that waits for the console's thread, bytes. A port moves at most about 0.5 MB/s (an exit per byte), so this is
/// seconds of a console thread that does not run at all.
const STAGED_MAX: usize = 1 << 20;

#[derive(Default)]
struct Staged {
    bytes: Vec<u8>,
    lost: u64,
    rung: bool,
}

/// Our end of the line. Ports come and go with every reset of the guest; the line stays.
pub(crate) struct Line {
    staged: Mutex<Staged>,
    port: Mutex<Weak<Serial>>,
    blocked: AtomicBool,
    bell: Bell,
}

/// What the guest sent since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) bytes: Vec<u8>,
    /// Bytes that had no room, all of them after `bytes`.
    pub(crate) lost: u64,
}

impl Line {
    /// A line with nothing at its other end. `bell` is rung when there is something to do.
    pub(crate) fn new(bell: Bell) -> Self {
        Self {
            staged: Mutex::default(),
            port: Mutex::default(),
            blocked: AtomicBool::new(false),
            bell,
        }
    }

    /// The descriptor that is readable when output waits or input is wanted.
    pub(crate) const fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Rings, for those who left something elsewhere for the console's thread.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// What came since the last call.
    pub(crate) fn take_output(&self) -> Output {
        let mut staged = lock(&self.staged);
        staged.rung = false;
        Output {
            bytes: mem::take(&mut staged.bytes),
            lost: mem::take(&mut staged.lost),
        }
    }

    /// Sends to the guest; returns how many bytes went. The bell rings when it is worth trying again.
    pub(crate) fn send(&self, bytes: &[u8]) -> usize {
        // Before the attempt: the port may want input again before we have seen that it refused some.
        self.blocked.store(true, Ordering::SeqCst);
        let port = lock(&self.port).upgrade();
        let sent = port.map_or(0, |port| port.input(bytes));
        if sent == bytes.len() {
            self.blocked.store(false, Ordering::SeqCst);
        }
        sent
    }

    /// Whether sending can do something now.
    pub(crate) fn is_open(&self) -> bool {
        !self.blocked.load(Ordering::SeqCst)
    }
}

impl SerialPeer for Line {
    fn output(&self, bytes: &[u8]) {
        let mut staged = lock(&self.staged);
        let room = STAGED_MAX - staged.bytes.len().min(STAGED_MAX);
        // Once bytes were lost, the rest of this batch is too: a gap has one place.
        let taken = if staged.lost > 0 { 0 } else { bytes.len().min(room) };
        staged.bytes.extend(bytes.iter().take(taken));
        staged.lost += (bytes.len() - taken) as u64;
        if !mem::replace(&mut staged.rung, true) {
            self.ring();
        }
    }

    fn input_wanted(&self) {
        self.blocked.store(false, Ordering::SeqCst);
        self.ring();
    }
}

impl vmm::Console for Line {
    fn connect(&self, port: &Arc<Serial>) {
        *lock(&self.port) = Arc::downgrade(port);
        self.input_wanted();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::IrqLine;
    use vmm::Console;

    struct NoIrq;

    impl IrqLine for NoIrq {
        fn trigger(&self) {}
    }

    fn line() -> Line {
        Line::new(Bell::new().unwrap())
    }

    #[test]
    fn output_rings_once_per_look() {
        let line = line();
        line.output(b"a");
        line.output(b"b");
        assert!(line.bell().silence());
        assert_eq!(line.take_output().bytes, b"ab");
        assert!(!line.bell().silence());
        line.output(b"c");
        assert!(line.bell().silence());
    }

    #[test]
    fn a_console_that_does_not_look_costs_bytes_and_never_waits() {
        let line = line();
        let flood = vec![b'x'; STAGED_MAX + 10];
        line.output(&flood);
        line.output(b"more");
        let output = line.take_output();
        assert_eq!((output.bytes.len(), output.lost), (STAGED_MAX, 14));
        line.output(b"fresh");
        assert_eq!(line.take_output().bytes, b"fresh");
    }

    #[test]
    fn input_waits_for_a_port_and_finds_the_next_one() {
        let line = Arc::new(line());
        assert_eq!(line.send(b"early"), 0);
        assert!(!line.is_open());
        for _ in 0..2 {
            let port = Arc::new(Serial::new("serial", Arc::new(NoIrq), line.clone()));
            line.connect(&port);
            assert!(line.is_open());
            assert_eq!(line.send(b"hello"), 5);
        }
        assert_eq!(line.send(b"gone"), 0);
    }
}

//! Streams in memory, with a network between them that can be cut after a byte, slowed, or made to deliver in bursts.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use migration::{Acceptor, Dialer, Link};

/// From source to target, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    There,
    Back,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<(VecDeque<u8>, bool)>,
    changed: Condvar,
}

impl Pipe {
    fn close(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// All streams of one attempt.
#[derive(Clone)]
pub(crate) struct Network(Arc<Inner>);

struct Inner {
    cut: AtomicBool,
    /// After so many bytes one way everything is cut.
    after: Option<(Way, u64)>,
    passed: [AtomicU64; 2],
    pipes: Mutex<Vec<Arc<Pipe>>>,
    calls: Mutex<VecDeque<Link>>,
    called: Condvar,
    /// Makes writers wait at random, so that streams overtake each other.
    jitter: Option<AtomicU64>,
    /// Lets a test replace what the target sees of a stream.
    dials: AtomicU64,
}

impl Network {
    pub(crate) fn new(after: Option<(Way, u64)>) -> Self {
        Self::build(after, None)
    }

    pub(crate) fn with_jitter(seed: u64) -> Self {
        Self::build(None, Some(AtomicU64::new(seed | 1)))
    }

    fn build(after: Option<(Way, u64)>, jitter: Option<AtomicU64>) -> Self {
        Self(Arc::new(Inner {
            cut: AtomicBool::new(false),
            after,
            passed: [AtomicU64::new(0), AtomicU64::new(0)],
            pipes: Mutex::default(),
            calls: Mutex::default(),
            called: Condvar::new(),
            jitter,
            dials: AtomicU64::new(0),
        }))
    }

    pub(crate) fn passed(&self, way: Way) -> u64 {
        self.0.passed[way as usize].load(Ordering::SeqCst)
    }

    pub(crate) fn dials(&self) -> u64 {
        self.0.dials.load(Ordering::SeqCst)
    }

    /// Ends every stream both ways. What was delivered can still be read.
    pub(crate) fn cut(&self) {
        self.0.cut.store(true, Ordering::SeqCst);
        for pipe in self.0.pipes.lock().unwrap().iter() {
            pipe.close();
        }
        self.0.called.notify_all();
    }

    fn link(&self, read: &Arc<Pipe>, write: &Arc<Pipe>, way: Way) -> Link {
        let (r, w) = (Arc::clone(read), Arc::clone(write));
        Link {
            reader: Box::new(Reader(Arc::clone(read))),
            writer: Box::new(Writer {
                pipe: Arc::clone(write),
                network: self.clone(),
                way,
            }),
            hang_up: Arc::new(move || {
                r.close();
                w.close();
            }),
        }
    }

    /// A new stream to whoever accepts.
    pub(crate) fn connect(&self) -> io::Result<Link> {
        let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        let mut pipes = self.0.pipes.lock().unwrap();
        if self.0.cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        pipes.extend([Arc::clone(&there), Arc::clone(&back)]);
        drop(pipes);
        self.0.dials.fetch_add(1, Ordering::SeqCst);
        self.0
            .calls
            .lock()
            .unwrap()
            .push_back(self.link(&there, &back, Way::Back));
        self.0.called.notify_all();
        Ok(self.link(&back, &there, Way::There))
    }
}

impl Dialer for Network {
    fn dial(&mut self) -> io::Result<Link> {
        self.connect()
    }
}

impl Acceptor for Network {
    fn accept(&mut self, _wait: Duration) -> io::Result<Option<Link>> {
        let mut calls = self.0.calls.lock().unwrap();
        if calls.is_empty() {
            if self.0.cut.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            calls = self.0.called.wait_timeout(calls, Duration::from_millis(1)).unwrap().0;
        }
        Ok(calls.pop_front())
    }
}

struct Reader(Arc<Pipe>);

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap();
        while state.0.is_empty() && !state.1 {
            state = self.0.changed.wait(state).unwrap();
        }
        state.0.read(into)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Writer {
    pipe: Arc<Pipe>,
    network: Network,
    way: Way,
}

impl Writer {
    /// How many of `wanted` bytes pass before the cut.
    fn admit(&self, wanted: usize) -> usize {
        let passed = &self.network.0.passed[self.way as usize];
        let most = match self.network.0.after {
            Some((way, after)) if way == self.way => after,
            _ => u64::MAX,
        };
        let before = passed
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |passed| {
                Some(most.min(passed + wanted as u64))
            })
            .unwrap();
        usize::try_from(most.saturating_sub(before))
            .unwrap_or(usize::MAX)
            .min(wanted)
    }

    fn dawdle(&self) {
        if let Some(jitter) = &self.network.0.jitter {
            let noise = jitter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let noise = (noise ^ (noise >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            match noise % 4 {
                0 => std::thread::sleep(Duration::from_micros(noise % 700)),
                1 => std::thread::yield_now(),
                _ => {}
            }
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.dawdle();
        let bytes = if self.network.0.jitter.is_some() {
            &bytes[..bytes.len().min(1500)]
        } else {
            bytes
        };
        let mut state = self.pipe.state.lock().unwrap();
        if state.1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let pass = self.admit(bytes.len());
        state.0.extend(&bytes[..pass]);
        drop(state);
        self.pipe.changed.notify_all();
        if pass < bytes.len() {
            self.network.cut();
            if pass == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(pass)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pipe.close();
    }
}

//! A thread that writes what is put in, so that who decides never waits for the peer to read.

use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::wire::Message;

/// How long a last word may take to get out before the stream is ended all the same.
const LAST_WORD: Duration = Duration::from_millis(200);

/// The writing side of a control stream.
#[derive(Debug)]
pub(crate) struct Outbox {
    frames: Option<Sender<Vec<u8>>>,
    drained: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Outbox {
    /// Writes to `writer` from now on. A write that fails is noticed by whoever reads from the same stream.
    pub(crate) fn new(mut writer: Box<dyn Write + Send>) -> Self {
        let (frames, inbox) = mpsc::channel::<Vec<u8>>();
        let (done, drained) = mpsc::channel();
        let thread = thread::spawn(move || {
            for frame in inbox {
                if writer.write_all(&frame).and_then(|()| writer.flush()).is_err() {
                    break;
                }
            }
            // Nobody may be waiting.
            let _ = done.send(());
        });
        Self {
            frames: Some(frames),
            drained,
            thread: Some(thread),
        }
    }

    pub(crate) fn send(&self, message: &Message) {
        self.send_frame(message.encode());
    }

    pub(crate) fn send_frame(&self, frame: Vec<u8>) {
        if let Some(frames) = &self.frames {
            // The thread ends only when the stream is broken, and its reader says so.
            let _ = frames.send(frame);
        }
    }

    /// Takes nothing more, and waits a moment until all is written. Then the stream has to be ended, and after that
    /// [`Outbox::join`] called.
    pub(crate) fn close(&mut self) {
        if self.frames.take().is_some() {
            // What is not out by then gets lost with the stream.
            let _ = self.drained.recv_timeout(LAST_WORD);
        }
    }

    pub(crate) fn join(&mut self) {
        self.frames = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic, and it has nothing to say.
            let _ = thread.join();
        }
    }
}

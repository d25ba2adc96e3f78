//! The console's thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use sandbox::{NewThread, ThreadKind};

use super::log::ConsoleLog;
use super::scrollback::Scrollback;
use crate::bell::Bell;
use crate::console::Line;

/// What a new reader gets to see of the past, bytes.
const SCROLLBACK_BYTES: usize = 1 << 20;
/// Readers at one time; later ones are turned away.
const READERS_MAX: usize = 64;
/// Input that waits for a guest which does not read, bytes; readers are not read from meanwhile.
const INPUT_MAX: usize = 4096;
/// Guests print byte by byte; that long is waited for more to come before output is handled. Not to be felt by a typist.
const GATHER: Duration = Duration::from_millis(1);
/// How long readers may take for their last bytes when the machine has ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// Stack of the thread, bytes.
const STACK_BYTES: usize = 256 << 10;

enum Order {
    Log(ConsoleLog),
    Finish,
}

/// The running console.
pub(crate) struct ConsoleServer {
    line: Arc<Line>,
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
}

impl ConsoleServer {
    /// Serves readers who connect to `listener`.
    pub(crate) fn spawn(listener: OwnedFd) -> io::Result<Self> {
        let line = Arc::new(Line::new(Bell::new()?));
        rustix::io::ioctl_fionbio(&listener, true)?;
        let (orders, received) = mpsc::channel();
        let server = Server {
            line: Arc::clone(&line),
            listener,
            orders: received,
            scrollback: Scrollback::new(SCROLLBACK_BYTES),
            log: None,
            log_lost: 0,
            readers: Vec::new(),
            input: VecDeque::new(),
        };
        let thread = NewThread::new(ThreadKind::Console, "console")
            .stack_bytes(STACK_BYTES)
            .spawn(move || server.run())?;
        Ok(Self { line, orders, thread })
    }

    /// The line to plug serial ports into.
    pub(crate) const fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// From now on everything goes to `log` too.
    pub(crate) fn log_to(&self, log: ConsoleLog) {
        self.order(Order::Log(log));
    }

    /// Writes what is left, to the log whatever it takes and to readers as far as they take it, and ends the thread.
    pub(crate) fn finish(self) {
        self.order(Order::Finish);
        if self.thread.join().is_err() {
            tracing::error!("the console thread died; console output may be missing");
        }
    }

    fn order(&self, order: Order) {
        // The thread ends only by `finish`, so somebody is there to take it.
        let _ = self.orders.send(order);
        self.line.ring();
    }
}

struct Reader {
    socket: OwnedFd,
    /// Up to where it has seen the scrollback.
    position: u64,
}

struct Server {
    line: Arc<Line>,
    listener: OwnedFd,
    orders: mpsc::Receiver<Order>,
    scrollback: Scrollback,
    log: Option<ConsoleLog>,
    /// Bytes the log could not take since it last worked.
    log_lost: u64,
    readers: Vec<Reader>,
    input: VecDeque<u8>,
}

impl Server {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            if ready.line {
                thread::sleep(GATHER);
                self.line.bell().silence();
            }
            let finish = self.take_orders();
            self.take_output();
            if finish {
                break;
            }
            if ready.listener {
                self.accept();
            }
            self.serve_readers();
            self.send_input();
        }
        self.say_farewell();
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Ready {
        let end = self.scrollback.end();
        let listening = self.input.len() < INPUT_MAX;
        let mut fds = Vec::with_capacity(2 + self.readers.len());
        fds.push(PollFd::new(self.line.bell(), PollFlags::IN));
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        for reader in &self.readers {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, listening);
            wanted.set(PollFlags::OUT, reader.position < end);
            fds.push(PollFd::new(&reader.socket, wanted));
        }
        if let Err(errno) = poll(&mut fds, None)
            && errno != Errno::INTR
        {
            tracing::error!(%errno, "console can not wait for its sockets");
            thread::sleep(Duration::from_millis(100));
        }
        let revents: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let (own, theirs) = revents.split_at(2);
        if !listening {
            // Whoever is not read from can only be noticed to be gone here.
            let mut gone = theirs.iter().map(|r| r.intersects(PollFlags::HUP | PollFlags::ERR));
            self.readers.retain(|_| !gone.next().unwrap_or(false));
        }
        let is_ready = |index: usize| own.get(index).is_some_and(|revents| !revents.is_empty());
        Ready {
            line: is_ready(0),
            listener: is_ready(1),
        }
    }

    /// True when it is time to finish.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Log(log)) => {
                    self.log = Some(log);
                    // What came before there was a log belongs into it as well.
                    let [first, second] = self.scrollback.from(0);
                    let earlier = [first, second].concat();
                    self.write_log(&earlier);
                }
                Ok(Order::Finish) | Err(mpsc::TryRecvError::Disconnected) => return true,
                Err(mpsc::TryRecvError::Empty) => return false,
            }
        }
    }

    fn take_output(&mut self) {
        let output = self.line.take_output();
        self.publish(&output.bytes);
        if output.lost > 0 {
            tracing::warn!(
                bytes = output.lost,
                "console output was lost: the guest prints faster than it can be kept"
            );
            self.publish(format!("\r\n[karat: {} bytes of console output lost]\r\n", output.lost).as_bytes());
        }
    }

    fn publish(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.scrollback.push(bytes);
        self.write_log(bytes);
    }

    fn write_log(&mut self, bytes: &[u8]) {
        let Some(log) = &mut self.log else { return };
        match log.append(bytes) {
            Ok(()) if self.log_lost > 0 => {
                tracing::info!(
                    bytes = self.log_lost,
                    "console log works again; that much is missing in it"
                );
                self.log_lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.log_lost == 0 {
                    tracing::error!(%error, "console log can not be written; the console goes on without it");
                }
                self.log_lost += bytes.len() as u64;
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.readers.len() >= READERS_MAX {
                tracing::warn!(limit = READERS_MAX, "console reader turned away: there are too many");
                continue;
            }
            self.readers.push(Reader {
                socket,
                position: self.scrollback.start(),
            });
        }
    }

    fn serve_readers(&mut self) {
        let Self {
            readers,
            scrollback,
            input,
            ..
        } = self;
        readers.retain_mut(|reader| show(reader, scrollback) && listen(reader, input));
    }

    /// Hands waiting input to the guest, as far as it takes it.
    fn send_input(&mut self) {
        while !self.input.is_empty() && self.line.is_open() {
            let sent = self.line.send(self.input.make_contiguous());
            self.input.drain(..sent);
        }
    }

    fn say_farewell(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        let end = self.scrollback.end();
        loop {
            let scrollback = &self.scrollback;
            self.readers
                .retain_mut(|reader| show(reader, scrollback) && reader.position < end);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.readers.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> = self
                .readers
                .iter()
                .map(|reader| PollFd::from_borrowed_fd(reader.socket.as_fd(), PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}

struct Ready {
    line: bool,
    listener: bool,
}

/// Sends a reader what it has not seen; false when it is gone.
fn show(reader: &mut Reader, scrollback: &Scrollback) -> bool {
    reader.position = reader.position.max(scrollback.start());
    while reader.position < scrollback.end() {
        let pieces = scrollback.from(reader.position);
        let piece = pieces.into_iter().find(|piece| !piece.is_empty()).unwrap_or_default();
        match send(&reader.socket, piece, SendFlags::NOSIGNAL) {
            Ok(sent) => reader.position += sent as u64,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(_) => return false,
        }
    }
    true
}

/// Takes what a reader typed, as far as there is room; false when it is gone.
fn listen(reader: &Reader, input: &mut VecDeque<u8>) -> bool {
    let mut bytes = [0; 1024];
    while input.len() < INPUT_MAX {
        match recv(&reader.socket, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((count, _)) => input.extend(bytes.iter().take(count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

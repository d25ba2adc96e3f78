//! A control connection, as the daemon holds it.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use control::{
    Decoder, DiskReport, EndReport, FromVm, Hello, PROTOCOL_VERSION, Refusal, ToVm, VmEvent, VmRequest, VmState,
    VmStatus, encode, send_with_fds,
};

use super::PATIENCE;

/// A connection after its hello.
pub(crate) struct Link {
    pub(crate) socket: UnixStream,
    decoder: Decoder,
    number: u64,
    pub(crate) hello: Hello,
    /// Events that nobody waited for yet.
    pub(crate) events: Vec<VmEvent>,
}

impl Link {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut this = Self {
            socket,
            decoder: Decoder::new(),
            number: 100,
            hello: Hello {
                protocol: 0,
                migration: None,
                pid: 0,
                version: String::new(),
                status: VmStatus {
                    id: None,
                    state: VmState::Empty,
                    resets: 0,
                    first_entry_us: None,
                },
            },
            events: Vec::new(),
        };
        match this.next() {
            Some(FromVm::Hello(hello)) => this.hello = hello,
            other => panic!("no hello but {other:?}"),
        }
        assert_eq!(this.hello.protocol, PROTOCOL_VERSION);
        this
    }

    /// The next frame; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<FromVm> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            assert!(Instant::now() < deadline, "karat-vmm says nothing");
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("control: {error}"),
            }
        }
    }

    /// Asks, and waits for the answer; events that come meanwhile are kept.
    pub(crate) fn ask(&mut self, request: VmRequest) -> Result<VmStatus, Refusal> {
        self.ask_with_files(request, &[])
    }

    pub(crate) fn ask_with_files(&mut self, request: VmRequest, files: &[BorrowedFd<'_>]) -> Result<VmStatus, Refusal> {
        self.try_ask(request, files)
            .expect("karat-vmm hung up instead of answering")
    }

    /// As [`Link::ask`], of a machine that may end just now: `None` when it has.
    pub(crate) fn ask_if_there(&mut self, request: VmRequest) -> Option<Result<VmStatus, Refusal>> {
        self.try_ask(request, &[])
    }

    fn try_ask(&mut self, request: VmRequest, files: &[BorrowedFd<'_>]) -> Option<Result<VmStatus, Refusal>> {
        self.number += 1;
        let mine = self.number;
        let bytes = encode(&ToVm { number: mine, request }).unwrap();
        let sent = send_with_fds(&self.socket, &bytes, files).ok()?;
        self.socket.write_all(&bytes[sent..]).ok()?;
        loop {
            match self.next()? {
                FromVm::Done { number, status } if number == mine => return Some(Ok(status)),
                FromVm::Refused { number, refusal } if number == mine => return Some(Err(refusal)),
                FromVm::Event(event) => self.events.push(event),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Asks what the disks are and did.
    pub(crate) fn disk_reports(&mut self) -> Vec<DiskReport> {
        self.number += 1;
        let number = self.number;
        let request = VmRequest::DiskReports;
        self.socket
            .write_all(&encode(&ToVm { number, request }).unwrap())
            .unwrap();
        loop {
            match self.next().expect("karat-vmm hung up") {
                FromVm::Disks { number: to, disks } if to == number => return disks,
                FromVm::Event(event) => self.events.push(event),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Waits for an event; those before it are dropped.
    pub(crate) fn wait_for<T>(&mut self, wanted: impl Fn(&VmEvent) -> Option<T>) -> T {
        loop {
            let event = if self.events.is_empty() {
                match self.next().expect("karat-vmm hung up before the event") {
                    FromVm::Event(event) => event,
                    other => panic!("unexpected {other:?}"),
                }
            } else {
                self.events.remove(0)
            };
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    pub(crate) fn wait_for_report(&mut self) -> EndReport {
        self.wait_for(|event| match event {
            VmEvent::Ended { report } => Some(report.clone()),
            _ => None,
        })
    }
}

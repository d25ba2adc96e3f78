//! The console with readers that read and readers that do not.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use chipset::{Serial, SerialPeer};
use device::IrqLine;
use vmm::Console;

use super::*;

struct NoIrq;

impl IrqLine for NoIrq {
    fn trigger(&self) {}
}

struct Rig {
    server: ConsoleServer,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        Self {
            server: ConsoleServer::spawn(listener.into()).unwrap(),
            socket,
            folder,
        }
    }

    fn reader(&self) -> UnixStream {
        let reader = UnixStream::connect(&self.socket).unwrap();
        reader.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        reader
    }

    /// Prints as a guest does, but no faster than the console takes it.
    fn print(&self, bytes: &[u8]) {
        for piece in bytes.chunks(256 << 10) {
            self.server.line().output(piece);
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) {
        let directory = std::fs::File::open(self.folder.path()).unwrap();
        let log = ConsoleLog::open(directory.into(), 64 << 20, 1).unwrap();
        self.server.log_to(log);
    }

    fn logged(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("console.log")).unwrap()
    }
}

fn read_to_end(mut reader: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    bytes
}

#[test]
fn the_log_has_all_of_it_and_a_slow_reader_what_the_scrollback_kept() {
    let rig = Rig::new();
    rig.print(b"before there was a log\n");
    rig.log();
    let slow = rig.reader();
    let flood: Vec<u8> = (0..3 * SCROLLBACK_BYTES)
        .map(|n| b'a' + u8::try_from(n % 23).unwrap())
        .collect();
    rig.print(&flood);
    let late = rig.reader();
    let reading = [slow, late].map(|reader| thread::spawn(move || read_to_end(reader)));
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    let folder = rig.logged();
    rig.server.finish();
    assert!(started.elapsed() < Duration::from_secs(2), "the end takes its time");
    let [slow, late] = reading.map(|thread| thread.join().unwrap());
    assert_eq!(folder, [b"before there was a log\n", &flood[..]].concat());
    assert!(slow.len() < flood.len(), "a reader that slept has lost something");
    for (name, seen) in [("slow", slow), ("late", late)] {
        let tail = &flood[flood.len() - 1000..];
        assert!(
            seen.ends_with(tail),
            "the {name} reader misses the end, after {} bytes",
            seen.len()
        );
    }
}

#[test]
fn a_deaf_reader_delays_the_end_by_its_share_only() {
    let rig = Rig::new();
    let deaf = rig.reader();
    rig.print(&vec![b'x'; SCROLLBACK_BYTES]);
    let started = Instant::now();
    rig.server.finish();
    assert!(started.elapsed() < FAREWELL * 3);
    drop(deaf);
}

#[test]
fn input_goes_to_the_guest_and_waits_for_one_that_does_not_read() {
    let rig = Rig::new();
    let line = Arc::clone(rig.server.line());
    let port = Arc::new(Serial::new("serial", Arc::new(NoIrq), line.clone()));
    line.connect(&port);
    let mut typist = rig.reader();
    typist.set_nonblocking(true).unwrap();
    let mut typed = 0;
    let mut idle = 0;
    // As much as goes: port, console and socket are full then.
    while idle < 20 {
        match typist.write(&[b'k'; 4096]) {
            Ok(count) => (typed, idle) = (typed + count, 0),
            Err(_) => {
                idle += 1;
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert!(typed > chipset::INPUT_QUEUE_BYTES);
    let read = |offset| {
        let mut byte = [0];
        device::BusHandler::read(&*port, offset, &mut byte);
        byte[0]
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut arrived = 0;
    while arrived < typed && Instant::now() < deadline {
        if read(5) & 1 != 0 {
            assert_eq!(read(0), b'k');
            arrived += 1;
        }
    }
    assert_eq!(arrived, typed, "nothing typed is lost");
    rig.server.finish();
}

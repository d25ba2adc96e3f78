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

#[test]
fn what_was_typed_before_a_reader_left_reaches_the_guest() {
    let rig = Rig::new();
    let line = Arc::clone(rig.server.line());
    let typed: Vec<u8> = (0..3 * INPUT_MAX)
        .map(|n| b'a' + u8::try_from(n % 23).unwrap())
        .collect();
    for part in typed.chunks(INPUT_MAX) {
        // It writes, and is gone before there is a guest.
        let mut typist = rig.reader();
        typist.write_all(part).unwrap();
        drop(typist);
        // The console learns of that by having something for it.
        rig.print(b"login: ");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(rig.reader().write(b"!").unwrap(), 1);
    let port = Arc::new(Serial::new("serial", Arc::new(NoIrq), line.clone()));
    line.connect(&port);
    let read = |offset| {
        let mut byte = [0];
        device::BusHandler::read(&*port, offset, &mut byte);
        byte[0]
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut arrived = Vec::new();
    while arrived.len() <= typed.len() && Instant::now() < deadline {
        if read(5) & 1 != 0 {
            arrived.push(read(0));
        }
    }
    assert_eq!(arrived.len(), typed.len() + 1, "nothing typed is lost");
    assert!(arrived.starts_with(&typed) && arrived.ends_with(b"!"), "and in order");
    rig.server.finish();
}

#[test]
fn readers_that_left_make_room_for_others() {
    let rig = Rig::new();
    // Nobody reads what they typed.
    for _ in 0..READERS_MAX {
        rig.reader().write_all(&[b'k'; INPUT_MAX]).unwrap();
        rig.print(b".");
    }
    let mut late = rig.reader();
    rig.print(b"still here");
    let mut seen = vec![0; READERS_MAX + 10];
    late.read_exact(&mut seen).unwrap();
    assert!(seen.ends_with(b"still here"));
    rig.server.finish();
}

#[test]
fn input_that_nobody_reads_is_waited_for_without_burning_time() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("console.sock")).unwrap();
    let line = Arc::new(Line::new(Bell::new().unwrap()));
    let (_orders, received) = mpsc::channel();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"more").unwrap();
    drop(far);
    let mut server = Server {
        line: Arc::clone(&line),
        listener: listener.into(),
        orders: received,
        scrollback: Scrollback::new(1024),
        log: None,
        log_lost: 0,
        readers: vec![Reader {
            socket: near.into(),
            position: 0,
            has_left: false,
        }],
        input: vec![b'k'; INPUT_MAX].into(),
    };
    // Once it is told that the reader has left; then there is nothing to do until something happens.
    server.wait();
    assert!(server.readers[0].has_left);
    let bell = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        line.ring();
    });
    let started = Instant::now();
    assert!(server.wait().line);
    assert!(started.elapsed() >= Duration::from_millis(80), "it did not wait");
    bell.join().unwrap();
    server.input.clear();
    server.serve_readers();
    assert_eq!(Vec::from(server.input), b"more", "it is taken when there is room");
    assert!(server.readers.is_empty());
}

//! Streams over real sockets: plain and encrypted, and who is turned away.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use control::Blob;

use super::*;

const WAIT: Duration = Duration::from_secs(10);

/// Credentials of two sides that know each other.
fn pair() -> (LinkCredentials, LinkCredentials) {
    let make = || rcgen::generate_simple_self_signed(vec!["karat".to_owned()]).unwrap();
    let (source, target) = (make(), make());
    let of = |own: &rcgen::CertifiedKey<rcgen::KeyPair>, peer: &rcgen::CertifiedKey<rcgen::KeyPair>| LinkCredentials {
        certificate_der: Blob(own.cert.der().to_vec()),
        key_der: Blob(own.signing_key.serialize_der()),
        peer_certificate_der: Blob(peer.cert.der().to_vec()),
    };
    (of(&source, &target), of(&target, &source))
}

/// What both sides get when `source` and `target` meet.
fn meet(source: Option<&LinkCredentials>, target: Option<&LinkCredentials>) -> (io::Result<Link>, Option<Link>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut listening = Listening::new(listener.into(), target).unwrap();
    let mut connected = Connected::new(vec![socket.into()], source).unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(move || listening.accept(WAIT).unwrap());
        let dialed = connected.dial();
        (dialed, accepting.join().unwrap())
    })
}

/// Both ways at once, more than any buffer takes, so that nothing may wait for the other way.
fn talk(near: Link, far: Link) {
    let bytes: Vec<u8> = (0..4_u32 << 20).map(|n| (n % 251).try_into().unwrap()).collect();
    let (near, far) = (Ends::of(near), Ends::of(far));
    thread::scope(|scope| {
        for (mut writer, mut reader) in [(near.1, far.0), (far.1, near.0)] {
            let bytes = &bytes;
            scope.spawn(move || writer.write_all(bytes).unwrap());
            scope.spawn(move || {
                let mut got = vec![0; bytes.len()];
                reader.read_exact(&mut got).unwrap();
                assert!(got == *bytes);
            });
        }
    });
    (near.2)();
}

struct Ends;

impl Ends {
    fn of(link: Link) -> (Box<dyn Read + Send>, Box<dyn Write + Send>, migration::HangUp) {
        (link.reader, link.writer, link.hang_up)
    }
}

#[test]
fn streams_carry_both_ways_at_once() {
    let (source, target) = pair();
    for credentials in [None, Some((source, target))] {
        let (source, target) = credentials.as_ref().map_or((None, None), |(s, t)| (Some(s), Some(t)));
        let (near, far) = meet(source, target);
        talk(near.unwrap(), far.unwrap());
    }
}

#[test]
fn only_the_one_certificate_is_let_in() {
    let (source, target) = pair();
    let (stranger, _) = pair();
    // A stranger that knows the target's certificate, but has another one than the target waits for.
    let knows_target = LinkCredentials {
        peer_certificate_der: source.peer_certificate_der.clone(),
        ..stranger.clone()
    };
    let (_, let_in) = meet(Some(&knows_target), Some(&target));
    assert!(let_in.is_none(), "a stranger is turned away");
    // A target that is not the one.
    let (dialed, _) = meet(Some(&stranger), Some(&target));
    assert!(dialed.is_err(), "another target is found out");
    // Plain, where encryption is wanted.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut listening = Listening::new(listener.into(), Some(&target)).unwrap();
    socket.write_all(&[0; 64]).unwrap();
    assert!(listening.accept(WAIT).unwrap().is_none());
}

#[test]
fn no_more_streams_than_sockets() {
    let (near, _far) = UnixStream::pair().unwrap();
    let mut connected = Connected::new(vec![near.into()], None).unwrap();
    let link = connected.dial().unwrap();
    assert!(connected.dial().is_err());
    (link.hang_up)();
    let mut reader = link.reader;
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn broken_credentials_are_refused_at_once() {
    let (mut source, _) = pair();
    source.key_der = Blob(vec![1, 2, 3]);
    assert!(Connected::new(Vec::new(), Some(&source)).is_err());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Listening::new(listener.into(), Some(&source)).is_err());
}

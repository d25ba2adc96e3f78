//! Tells the networks of a machine where it is now.
//!
//! Switches send a machine's frames where they heard it last. So a frame is sent in its name: a RARP request (RFC 903), which has
//! the machine's hardware address, asks for nothing that anybody answers today, and needs no address of a higher protocol.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use sandbox::{NewThread, ThreadKind};
use spec::MacAddress;

/// Before each frame: some may be lost while bridges learn.
const PAUSES_MS: [u64; 5] = [0, 50, 150, 250, 350];
/// Bytes of `virtio_net_hdr_v1`, in front of each frame of a tap. Zero: nothing is left to the receiver.
const HEADER: usize = 12;
/// Shortest Ethernet frame without its checksum (IEEE 802.3).
const FRAME: usize = 60;
/// Stack of the thread, bytes.
const STACK_BYTES: usize = 128 << 10;

/// The request of the machine with this address, as a tap takes it.
fn request(mac: MacAddress) -> [u8; HEADER + FRAME] {
    let mac = &mac.bytes();
    let parts: [&[u8]; 11] = [
        &[0; HEADER],
        // To everybody, from it, RARP.
        &[0xff; 6],
        mac,
        &[0x80, 0x35],
        // Ethernet and IPv4, lengths of their addresses, a reverse request.
        &[0, 1, 8, 0, 6, 4],
        &[0, 3],
        // Sender and target are the same; neither has said its IPv4 address.
        mac,
        &[0; 4],
        mac,
        &[0; 4],
        &[0; 18],
    ];
    let mut frame = [0; HEADER + FRAME];
    for (to, from) in frame.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    frame
}

/// Announces each address on its tap, some times, from a thread of its own.
pub(crate) fn spawn(interfaces: Vec<(MacAddress, OwnedFd)>) -> io::Result<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    NewThread::new(ThreadKind::Watch, "announce")
        .stack_bytes(STACK_BYTES)
        .spawn(move || {
            for pause in PAUSES_MS {
                thread::sleep(Duration::from_millis(pause));
                for (mac, tap) in &interfaces {
                    if let Err(errno) = rustix::io::write(tap, &request(*mac)) {
                        tracing::warn!(%mac, %errno, "the machine can not be announced on its network");
                    }
                }
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn every_interface_is_announced_some_times() {
        let (near, far) = UnixDatagram::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mac: MacAddress = "02:00:5e:10:00:01".parse().unwrap();
        spawn(vec![(mac, near.into())]).unwrap();
        for _ in PAUSES_MS {
            let mut frame = [0xaa; 128];
            assert_eq!(far.recv(&mut frame).unwrap(), HEADER + FRAME);
            let ethernet = &frame[HEADER..HEADER + FRAME];
            assert_eq!(frame[..HEADER], [0; HEADER]);
            assert_eq!(ethernet[..6], [0xff; 6]);
            assert_eq!(ethernet[6..12], mac.bytes());
            assert_eq!(ethernet[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
            assert_eq!(
                (&ethernet[22..28], &ethernet[32..38]),
                (&mac.bytes()[..], &mac.bytes()[..])
            );
            assert_eq!(ethernet[38..], [0; 22]);
        }
    }
}

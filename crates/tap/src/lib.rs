//! Tap interfaces of the host.
//!
//! The daemon opens the queues of a tap ([`open`]) and passes them to the machine process, whose network device sets on them
//! what its driver negotiated ([`set_offloads`], [`set_header_size`], [`set_attached`]). Packets themselves are not this
//! crate's matter: every read and write of a queue moves one Ethernet frame behind a `virtio_net_hdr`.

#![expect(unsafe_code, reason = "ioctls of the tun driver, with arguments by address")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, IntegerSetter, Opcode, Setter, Updater, opcode};

/// The tun driver's door (Linux, Documentation/networking/tuntap.rst).
const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface name with its terminating zero (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;
/// Most queues of one tap (`MAX_TAP_QUEUES`, drivers/net/tun.c).
const QUEUES_MAX: u16 = 256;

// ioctls and flags of include/uapi/linux/if_tun.h. The argument type in the number says `int` also where it is a `struct ifreq`.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const TUNSETQUEUE: Opcode = opcode::write::<i32>(b'T', 217);
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` as far as these ioctls use it (include/uapi/linux/if.h): a name, flags, and what pads it to 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_SIZE],
    flags: u16,
    unused: [u16; 11],
}

impl InterfaceRequest {
    const fn new(name: [u8; NAME_SIZE], flags: u16) -> Self {
        Self {
            name,
            flags,
            unused: [0; 11],
        }
    }
}

/// What may be left undone in frames read from a tap, because the guest does it (`TUN_F_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be missing. Needed by the others.
    pub checksum: bool,
    /// Frames may be TCP over IPv4 of up to 64 KiB.
    pub tso4: bool,
    /// Frames may be TCP over IPv6 of up to 64 KiB.
    pub tso6: bool,
}

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a name of an interface.
    #[error("{name:?} is no name for a tap: it takes 1 to 15 bytes without '/', ':' and spaces")]
    BadName {
        /// The refused name.
        name: String,
    },
    /// No queue, or more than the driver has.
    #[error("tap {name} can not have {queues} queues: it takes 1 to {QUEUES_MAX}")]
    BadQueues {
        /// Name of the tap.
        name: String,
        /// The refused number.
        queues: u16,
    },
    /// The driver is not there or not ours to use.
    #[error("cannot open {DEVICE}: load the tun module, and give this process read and write access")]
    NoDriver(#[source] io::Error),
    /// The kernel refused the interface.
    #[error("cannot open tap {name}: {hint}")]
    Refused {
        /// Name of the tap.
        name: String,
        /// What usually helps.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Opens `queues` queues of the tap `name`, which is made if it does not exist (that takes `CAP_NET_ADMIN`) and then lives as
/// long as they are open. Non-blocking, with a `virtio_net_hdr` in front of every frame, closed on exec.
pub fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, OpenError> {
    let wire_name = wire_name(name)?;
    if queues == 0 || queues > QUEUES_MAX {
        return Err(OpenError::BadQueues {
            name: name.to_owned(),
            queues,
        });
    }
    let refused = |errno: Errno| OpenError::Refused {
        name: name.to_owned(),
        hint: hint(errno),
        source: errno.into(),
    };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let mut fds = Vec::with_capacity(queues.into());
    for _ in 0..queues {
        let access = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(DEVICE, access, Mode::empty()).map_err(|errno| OpenError::NoDriver(errno.into()))?;
        match attach(&fd, wire_name, flags | IFF_MULTI_QUEUE) {
            // A tap that exists and was made for one queue.
            Err(Errno::INVAL) if queues == 1 => attach(&fd, wire_name, flags).map_err(refused)?,
            other => other.map_err(refused)?,
        }
        fds.push(fd);
    }
    Ok(fds)
}

/// Says what the reader of the tap does by itself. Concerns all queues of the tap.
pub fn set_offloads(queue: impl AsFd, offloads: Offloads) -> io::Result<()> {
    let Offloads { checksum, tso4, tso6 } = offloads;
    let bits = usize::from(checksum) | usize::from(checksum && tso4) << 1 | usize::from(checksum && tso6) << 2;
    // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself.
    let request = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits) };
    // SAFETY: the request touches no memory of this process.
    unsafe { ioctl::ioctl(queue, request) }?;
    Ok(())
}

/// Sets the size of the header in front of every frame, bytes: 12 for `virtio_net_hdr_v1`. Concerns all queues of the tap.
pub fn set_header_size(queue: impl AsFd, size: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ takes the address of an int.
    let request = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(size) };
    // SAFETY: the request is TUNSETVNETHDRSZ with the argument it takes, which it only reads.
    unsafe { ioctl::ioctl(queue, request) }?;
    Ok(())
}

/// Attaches a queue, or detaches it: then the tap sends no frames its way. Only for taps with several queues.
pub fn set_attached(queue: impl AsFd, attached: bool) -> io::Result<()> {
    let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    let request = InterfaceRequest::new([0; NAME_SIZE], flags);
    // SAFETY: TUNSETQUEUE takes the address of a struct ifreq.
    let request = unsafe { Setter::<TUNSETQUEUE, InterfaceRequest>::new(request) };
    // SAFETY: the request is TUNSETQUEUE with the argument it takes, of the size the kernel reads.
    unsafe { ioctl::ioctl(queue, request) }?;
    Ok(())
}

fn attach(fd: &OwnedFd, name: [u8; NAME_SIZE], flags: u16) -> Result<(), Errno> {
    let mut interface = InterfaceRequest::new(name, flags);
    // SAFETY: TUNSETIFF takes the address of a struct ifreq and writes it back.
    let request = unsafe { Updater::<TUNSETIFF, InterfaceRequest>::new(&mut interface) };
    // SAFETY: the request is TUNSETIFF with the argument it takes, of the size the kernel reads and writes.
    unsafe { ioctl::ioctl(fd, request) }
}

fn wire_name(name: &str) -> Result<[u8; NAME_SIZE], OpenError> {
    let bad = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
    let bytes = name.as_bytes();
    let mut wire = [0; NAME_SIZE];
    match wire.get_mut(..bytes.len()) {
        Some(place) if !bytes.is_empty() && bytes.len() < NAME_SIZE && !bytes.iter().any(bad) => {
            place.copy_from_slice(bytes);
            Ok(wire)
        }
        _ => Err(OpenError::BadName { name: name.to_owned() }),
    }
}

const fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "give this process CAP_NET_ADMIN, or make the tap for its user",
        Errno::BUSY => "another process has it open",
        Errno::INVAL => "an interface of this name exists and is no tap with multi_queue and vnet_hdr",
        Errno::TOOBIG => "it has all its queues open already",
        _ => "the kernel refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_and_numbers_that_can_not_be() {
        for name in ["", "sixteen-bytes-ab", "a b", "a/b", "tap%d", "ä"] {
            assert!(matches!(open(name, 1), Err(OpenError::BadName { .. })), "{name}");
        }
        assert!(matches!(open("tap0", 0), Err(OpenError::BadQueues { .. })));
        assert!(matches!(open("tap0", 257), Err(OpenError::BadQueues { .. })));
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    /// Needs a tun driver and `CAP_NET_ADMIN`; says so where they are missing.
    #[test]
    fn opens_queues_and_sets_them() {
        let name = format!("ktest{}", std::process::id() % 1_000_000);
        let queues = match open(&name, 2) {
            Ok(queues) => queues,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        set_header_size(&queues[0], 12).unwrap();
        let all = Offloads {
            checksum: true,
            tso4: true,
            tso6: true,
        };
        set_offloads(&queues[0], all).unwrap();
        set_offloads(&queues[0], Offloads::default()).unwrap();
        set_attached(&queues[1], false).unwrap();
        assert!(set_attached(&queues[1], false).is_err(), "detached already");
        set_attached(&queues[1], true).unwrap();
        let empty = rustix::io::read(&queues[0], &mut [0; 64]).unwrap_err();
        assert_eq!(empty, Errno::AGAIN);
    }
}

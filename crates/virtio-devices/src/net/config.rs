//! Features and configuration space of a network card (virtio 1.2 §5.1.3, §5.1.4).

use tap::Offloads;

use crate::config_space;

/// Bytes of configuration space: MAC, status, pairs, MTU.
const SIZE: usize = 12;
/// Status: the link is up.
const LINK_UP: u16 = 1;
/// Bytes of `virtio_net_hdr_v1`, in front of every frame in both directions.
pub(super) const HEADER_SIZE: usize = 12;
/// Longest frame with its header when the guest takes unsegmented TCP: 64 KiB and an Ethernet header.
const FRAME_LARGE: usize = HEADER_SIZE + 14 + 65535;
/// What comes in front of and around the MTU: header, Ethernet header, two VLAN tags.
const FRAME_OVERHEAD: usize = HEADER_SIZE + 14 + 8;
/// MTU when none is said, bytes: Ethernet's.
const MTU_DEFAULT: u16 = 1500;
/// Most queue pairs of a card. Each costs a thread.
pub(super) const PAIRS_MAX: usize = 64;
/// Entries of each queue: what drivers and other machines settled on.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;

pub(super) mod feature {
    pub(crate) const CSUM: u64 = 1 << 0;
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    pub(crate) const MTU: u64 = 1 << 3;
    pub(crate) const MAC: u64 = 1 << 5;
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    pub(crate) const STATUS: u64 = 1 << 16;
    pub(crate) const CTRL_VQ: u64 = 1 << 17;
    pub(crate) const MQ: u64 = 1 << 22;
}

/// What a network card is, beside its tap.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Unique in the machine, as `net0`.
    pub name: String,
    /// The card's address.
    pub mac: [u8; 6],
    /// Told to the guest where set, bytes; else the guest assumes 1500.
    pub mtu: Option<u16>,
}

/// What the device offers with `pairs` queue pairs.
pub(super) fn features(options: &NetOptions, pairs: usize) -> u64 {
    let always = feature::CSUM
        | feature::GUEST_CSUM
        | feature::MAC
        | feature::GUEST_TSO4
        | feature::GUEST_TSO6
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::MRG_RXBUF
        | feature::STATUS;
    let mtu = if options.mtu.is_some() { feature::MTU } else { 0 };
    let several = if pairs > 1 { feature::CTRL_VQ | feature::MQ } else { 0 };
    always | mtu | several
}

/// Receive and transmit queues of every pair, and a control queue where there is something to control.
pub(super) fn queue_sizes(pairs: usize) -> Vec<u16> {
    let mut sizes = vec![QUEUE_SIZE; 2 * pairs];
    if pairs > 1 {
        sizes.push(CONTROL_SIZE);
    }
    sizes
}

/// Index of the control queue, if `features` have one (virtio 1.2 §5.1.2).
pub(super) fn control_index(features: u64, pairs: usize) -> Option<usize> {
    let pairs = if features & feature::MQ == 0 { 1 } else { pairs };
    (features & feature::CTRL_VQ != 0).then_some(2 * pairs)
}

/// What the tap may leave to the guest.
pub(super) const fn offloads(features: u64) -> Offloads {
    Offloads {
        checksum: features & feature::GUEST_CSUM != 0,
        tso4: features & feature::GUEST_TSO4 != 0,
        tso6: features & feature::GUEST_TSO6 != 0,
    }
}

/// Longest frame the tap may give, header included, bytes.
pub(super) fn frame_max(features: u64, options: &NetOptions) -> usize {
    if features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) == 0 {
        FRAME_OVERHEAD + usize::from(options.mtu.unwrap_or(MTU_DEFAULT))
    } else {
        FRAME_LARGE
    }
}

/// Configuration space.
pub(super) fn space(options: &NetOptions, pairs: usize) -> [u8; SIZE] {
    let pairs = u16::try_from(pairs).unwrap_or(u16::MAX);
    config_space::lay_out(&[
        (0, &options.mac),
        (6, &LINK_UP.to_le_bytes()),
        (8, &pairs.to_le_bytes()),
        (10, &options.mtu.unwrap_or(MTU_DEFAULT).to_le_bytes()),
    ])
}

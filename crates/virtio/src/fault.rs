//! What can be wrong with a virtqueue.

/// How a ring stopped making sense: the driver's fault, but for a host that lost the worker behind it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// The rings themselves can not be used.
    #[error("virtqueue has {why}")]
    BadRing {
        /// What is wrong with them.
        why: &'static str,
    },
    /// A descriptor chain can not be used.
    #[error("virtqueue chain {head} {why}")]
    BadChain {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl From<virtio_queue::Error> for RingError {
    fn from(error: virtio_queue::Error) -> Self {
        use virtio_queue::Error as E;
        let why = match error {
            E::InvalidAvailRingIndex => "more chains available than it has entries",
            E::InvalidDescriptorIndex => "a chain that begins past its table",
            E::InvalidSize | E::InvalidMaxSize => "a size that is not a power of two within its limit",
            E::InvalidDescTableAlign | E::InvalidAvailRingAlign | E::InvalidUsedRingAlign => {
                "rings that are not aligned"
            }
            E::QueueNotReady => "no rings",
            _ => "rings outside of guest memory",
        };
        Self::BadRing { why }
    }
}

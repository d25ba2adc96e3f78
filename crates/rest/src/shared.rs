//! What every handler has.

use host::Host;

use crate::serve::Closing;

/// Handed to each handler by the router; clones are the same.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) closing: Closing,
}

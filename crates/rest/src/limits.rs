//! What a client may take of the daemon.

use std::time::Duration;

/// Largest body of a request, bytes. A machine with every disk and interface fits many times over.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// How long a client has to send the head of a request.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at once; further ones wait in the socket's backlog.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// How often an event stream shows that it is alive when nothing happens.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes of a console log that are sent unless asked otherwise.
pub(crate) const LOG_TAIL_DEFAULT: u64 = 64 << 10;

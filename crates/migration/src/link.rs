//! Streams between two sides, whatever they are made of.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Ends a stream in both ways at once, from any thread: blocked reads and writes on both sides return.
pub type HangUp = Arc<dyn Fn() + Send + Sync>;

/// A stream in both ways: TCP, TLS, a UNIX socket or a pipe in memory. Reader and writer are used by two threads at once.
pub struct Link {
    /// What the peer sends.
    pub reader: Box<dyn Read + Send>,
    /// What the peer gets. Bytes written are on their way without a flush.
    pub writer: Box<dyn Write + Send>,
    /// Ends both.
    pub hang_up: HangUp,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

impl Link {
    /// Over plain TCP. The caller has decided that plain is good enough here.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (reader, writer) = (stream.try_clone()?, stream.try_clone()?);
        let hang_up = Arc::new(move || {
            // The peer may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        });
        Ok(Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            hang_up,
        })
    }
}

/// Opens streams to the target.
pub trait Dialer {
    /// Opens another one. Authentication, if there is any, has succeeded when this returns. Must end by itself in bounded
    /// time: it is not interrupted by a cancellation.
    fn dial(&mut self) -> io::Result<Link>;
}

/// Takes streams that a source opened.
pub trait Acceptor: Send {
    /// The next one, or none after `wait`. Anybody may be at the other end of it who passed the authentication. An error means
    /// that no stream will ever come again.
    fn accept(&mut self, wait: Duration) -> io::Result<Option<Link>>;
}

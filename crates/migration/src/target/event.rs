//! What the threads of a target tell the one that decides.

use crate::error::Failure;
use crate::link::Link;
use crate::wire::Message;

#[derive(Debug)]
pub(super) enum Event {
    /// A stream has said who it is.
    Greeted(Link, Message),
    /// No stream will come any more.
    NoMore(Failure),
    Control(Message),
    ControlLost(Failure),
    RoundEnd {
        stream: u8,
        round: u32,
    },
    StreamLost(Failure),
    /// The last missing page is in its place.
    AllPlaced,
    /// The machine waits for pages.
    Wanted,
}

//! Moves a running machine from one process to another, over any streams.
//!
//! The side that has the machine calls [`depart`], the side that gets it [`arrive`]; both block on a thread of their own. What
//! a machine is they know from [`Departing`] and [`Arriving`], what the streams are from [`Dialer`] and [`Acceptor`]. Nothing
//! here knows of KVM, of sockets beyond [`Link::tcp`], or of the daemon.
//!
//! ```text
//!   source                                     target
//!     │ hello ─────────────────────────────────▶ │  version, key, machine, RAM layout, offers
//!     │ ◀──────────────────────────────── welcome │
//!     │ parameters, 1–16 page streams ──────────▶ │
//!     │ pages of round 1, round end ════════════▶ │  the guest runs here …
//!     │ ◀───────────────────────────── round done │
//!     │ … more rounds …                           │
//!     │ (pause) last round, sections, seal ═════▶ │
//!     │ ◀────────────────────────────────── ready │  could start; decides nothing any more
//!     │ (ledger: departed)                        │  ← the commit point
//!     │ start ──────────────────────────────────▶ │  … and runs there
//!     │ ◀──────────────────────────────── started │
//!     │ missing pages, wanted ones first ═══════▶ │  post-copy only
//!     │ ◀─────────────────────────────── complete │
//! ```
//!
//! The bytes are in [`wire`], the states of both sides above `source/mod.rs` and `target/mod.rs`, and why exactly one machine
//! runs whatever happens to the streams in `docs/adr/0012-the-source-decides-where-a-machine-is.md`.
//!
//! There is deliberately no encryption here (the streams are what the caller made them), no queue of migrations, and no disk:
//! mirrored disks count in the deadline and travel on streams of their own.

mod clock;
pub mod delta;
mod error;
mod layout;
mod ledger;
mod limiter;
mod link;
mod machine;
mod options;
mod outbox;
mod page_set;
mod phase;
mod progress;
mod section;
mod source;
mod steering;
mod target;
mod wanted;
pub mod wire;
pub use clock::{Clock, HostClock};
pub use error::Failure;
pub use layout::{LayoutError, RamLayout};
pub use ledger::{Decision, Ledger, LedgerError, Resolver};
pub use link::{Acceptor, Dialer, HangUp, Link};
pub use machine::{Arriving, Departing, Fault, SourceMemory, StateCost, TargetMemory};
pub use options::{AutoConverge, OnTimeout, Options, PostCopy, STREAMS_MAX};
pub use page_set::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, PAGES_MAX, PageSet};
pub use phase::Phase;
pub use progress::{CancelRefused, Handle, Progress};
pub use section::{SECTION_BYTES_MAX, SECTION_NAME_MAX, SECTIONS_BYTES_MAX, SECTIONS_MAX, Section, SectionError};
pub use source::{Departure, Departures, Owing, Plan, Undecided, depart};
pub use target::{Arrival, Arrivals, Expected, InDoubt, NotStarted, Waiting, arrive};
pub use wanted::Wanted;
pub use wire::{Key, MachineId, Offers};

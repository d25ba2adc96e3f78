//! Where the bytes of images come from: web servers, S3 object stores, and local files.
//!
//! A source is opened at a byte and gives an [`Opened`]: length if it is known, what identifies the object, and a stream of bytes.
//! Over HTTP the stream outlives its connection: after a drop it goes on with a range at the first byte not received, and makes
//! sure by ETag, `Last-Modified` and length that it is still the same object. No byte is fetched twice, none is guessed: where a
//! server cannot prove sameness, going on is an error and not a mix.
//!
//! Who may be asked is said by an [`AddressPolicy`]. It holds for URLs, for each redirect, and for the addresses that names turn
//! out to have. Local files lie below [`FileRoots`].
//!
//! ```no_run
//! # async fn fetch() -> Result<(), Box<dyn std::error::Error>> {
//! use image_sources::{Agent, AgentOptions, Source, WebSource};
//!
//! let agent = Agent::new(AgentOptions::default())?; // one for all sources that share policy and authorities
//! let source = Source::Web(WebSource::new(&agent, "https://mirror.example.org/debian-12.qcow2", None)?);
//! let opened = source.open().await?;
//! let (identity, progress) = (opened.identity().clone(), opened.progress());
//! let mut read = opened.into_read(&tokio::runtime::Handle::current(), 1 << 20);
//! tokio::task::spawn_blocking(move || std::io::copy(&mut read, &mut std::io::sink())).await??;
//! assert_eq!(Some(progress.fetched_bytes()), progress.total_bytes());
//! // Another day: is there anything new?
//! println!("{:?}", identity.compare(&source.probe().await?));
//! # Ok(()) }
//! ```
//!
//! Bytes come as the server sends them: a `Content-Encoding`, which is not asked for, is not undone (servers of `.gz` files state
//! one for what is in fact the file).
//!
//! Errors carry a code that does not change ([`SourceError::code`]):
//!
//! | code | meaning |
//! |---|---|
//! | `bad_location` | text that names no source |
//! | `denied_scheme` `denied_host` `denied_port` `denied_address` | the address policy says no, to the URL or to where a redirect or DNS leads |
//! | `bad_redirect` | a redirect to nowhere, from https to http, or one too many |
//! | `unresolved_host` | no address for the name |
//! | `unreachable` | no connection, or no answer over it |
//! | `too_slow` | no connection or answer in time, silence, or less than the least rate |
//! | `tls_expired` `tls_not_yet_valid` `tls_unknown_issuer` `tls_wrong_name` `tls_revoked` `tls_not_spoken` `tls_failed` | no trusted connection |
//! | `no_trust_anchor` | the bundle of certificate authorities is none, or the host has none |
//! | `unauthorized` | credentials missing, wrong or not enough |
//! | `not_found` | nothing there |
//! | `unexpected_status` | any other HTTP status |
//! | `bad_answer` | an answer that contradicts itself |
//! | `broke_off` | the connection broke within the body |
//! | `source_changed` | not the object that was begun or expected |
//! | `wrong_length` | longer or shorter than stated or expected |
//! | `not_resumable` | the server sends whole objects only, or nothing to compare them by |
//! | `denied_path` | a local path outside of the roots, or leading out |
//! | `not_a_file` | a directory, device, pipe or socket |
//! | `io` | the operating system refused |
//!
//! A fetch that gave up after several tries has the code of the last one's failure.

mod agent;
mod body;
mod call;
mod chain;
mod error;
mod fetch;
mod file;
mod identity;
mod limits;
mod login;
mod object;
mod opened;
mod pattern;
mod policy;
mod read;
mod resolve;
mod s3;
mod source;
mod special;
mod target;
mod tls;
mod tls_fault;
mod web;

pub use agent::{Agent, AgentOptions, without_secrets};
pub use call::{Call, Reply};
pub use error::SourceError;
pub use file::{FileRoots, FileSource};
pub use identity::{Comparison, Identity};
pub use limits::Limits;
pub use login::Login;
pub use opened::{Opened, Progress};
pub use pattern::{HostPattern, Network, PatternError};
pub use policy::{AddressPolicy, Refusal, Rule};
pub use read::PieceReader;
pub use resolve::{Lookup, SystemLookup};
pub use s3::{BucketStyle, S3Key, S3Server, S3Source};
pub use source::Source;
pub use tls_fault::TlsFault;
pub use web::WebSource;

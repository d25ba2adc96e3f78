//! Proofs of a qcow2 engine: a differential matrix against a model and QEMU's programs, `kill -9`, and power loss.
//!
//! ```text
//!   kinds ─▶ make (qemu-img, qemu-io) ─▶ single:  drive ⇄ shadow,   then verify (qemu-img check, compare), reopen     "matrix"
//!                                   ├──▶ killer:  victim ─ reports over a pipe ─▶ ledger, kill -9, check, next opening  "kill"
//!                                   └──▶ power:   recorder logs writes and syncs ─▶ states ─▶ check, ledger, use again  "power"
//! ```
//!
//! Each image, killed process and recorded run is a process of its own. Every run prints its seed; `--seed` repeats it.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod cli;
pub mod drive;
pub mod engine;
pub mod header;
mod karat;
pub mod killer;
pub mod kind;
pub mod kinds;
pub mod ledger;
pub mod make;
pub mod matrix;
pub mod outages;
pub mod power;
pub mod random;
pub mod recorder;
pub mod shadow;
pub mod single;
pub mod stack;
pub mod tools;
pub mod transfer;
pub mod verify;
pub mod victim;

pub use karat::Karat;

/// What a program of this package prints.
#[expect(clippy::print_stdout, reason = "reports are what these programs are for")]
pub(crate) fn say(words: &str) {
    println!("{words}");
}

//! The real daemon in a directory of its own, asked over its socket, with machines that run no guest.

mod harness;
mod images;
mod machines;
mod requests;
mod restarts;

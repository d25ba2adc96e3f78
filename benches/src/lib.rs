//! Benches and figures, side by side with peers.

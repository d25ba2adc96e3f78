//! How a scenario ends.

/// Nothing, or what is wrong.
pub type Outcome = Result<(), &'static str>;

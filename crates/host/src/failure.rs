//! What went wrong, in the form in which it is stored and handed on.

use std::error::Error;

use api_types::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};
use spec::Problems;

/// An error as callers and the registry keep it: a code for programs, a text for people, the fields that are wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, to what, what to do.
    pub detail: String,
    /// Fields of the request that are wrong, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl Failure {
    /// With nothing to say about single fields.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            problems: Vec::new(),
        }
    }

    /// With the text of `error` and of all its sources.
    pub(crate) fn of(code: ErrorCode, error: &(dyn Error + 'static)) -> Self {
        Self::new(code, chain(error))
    }

    /// A machine that was refused, with every field that is wrong.
    pub(crate) fn refused(what: &str, problems: &Problems) -> Self {
        Self {
            code: ErrorCode::InvalidSpec,
            detail: what.to_owned(),
            problems: problems.list().to_vec(),
        }
    }

    /// A machine that was refused for one field.
    pub(crate) fn refused_field(what: &str, field: &str, message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::InvalidSpec,
            detail: what.to_owned(),
            problems: vec![Problem {
                field: field.to_owned(),
                message: message.into(),
            }],
        }
    }
}

/// The text of an error and of everything below it, outermost first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(": ");
        text.push_str(&source.to_string());
        below = source.source();
    }
    text
}

/// What kind of trouble a store has with an image.
pub(crate) const fn store_code(error: &images::StoreError) -> ErrorCode {
    match error {
        images::StoreError::NotFound(_) | images::StoreError::NoSuchPart { .. } => ErrorCode::NotFound,
        images::StoreError::Damaged { .. } => ErrorCode::DigestMismatch,
        images::StoreError::Unavailable { .. } => ErrorCode::StoreUnavailable,
        images::StoreError::Io { .. } => ErrorCode::Internal,
    }
}

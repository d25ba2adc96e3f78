//! Errors behind errors.

use std::error::Error;
use std::io;

/// A cause whose type does not matter to callers.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The first error of type `T` among `error` and its sources.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error made from another error passes that one over when asked for its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

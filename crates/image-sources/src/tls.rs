//! Trust: certificate authorities and cryptography.

use std::sync::Once;

use reqwest::Certificate;

use crate::error::SourceError;

/// Largest bundle of certificate authorities read, bytes: Mozilla's whole programme is a quarter of it.
const BUNDLE_MAX: usize = 1 << 20;

/// The certificate authorities of a PEM bundle.
pub(crate) fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, SourceError> {
    let wrong = |problem: &str, source| SourceError::Trust {
        problem: format!("the source's bundle of certificate authorities {problem}"),
        source,
    };
    if pem.len() > BUNDLE_MAX {
        return Err(wrong(&format!("is longer than {BUNDLE_MAX} bytes"), None));
    }
    let authorities =
        Certificate::from_pem_bundle(pem).map_err(|error| wrong("is not in PEM form", Some(Box::new(error))))?;
    if authorities.is_empty() {
        return Err(wrong("has no certificate in it; it has to be in PEM form", None));
    }
    Ok(authorities)
}

/// The HTTPS stack is built without a provider of its own; the first one installed in the process serves all.
pub(crate) fn install_cryptography() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the program installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

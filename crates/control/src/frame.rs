//! Frames: a length in four bytes, little endian, then that much JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest frame, bytes of JSON. A machine with every disk and interface fits many times over.
pub const FRAME_MAX: usize = 1 << 20;
/// Bytes of the length in front of each frame.
const HEADER: usize = 4;

/// Why bytes are no frame. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX`].
    #[error("control frame of {0} bytes; at most {FRAME_MAX} are taken")]
    TooLong(usize),
    /// Not the JSON that was expected here.
    #[error("control frame is not understood")]
    Malformed(#[source] serde_json::Error),
}

/// The bytes of one frame.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Malformed)?;
    let length = bytes.len() - HEADER;
    match u32::try_from(length) {
        Ok(short) if length <= FRAME_MAX => {
            bytes.splice(..HEADER, short.to_le_bytes());
            Ok(bytes)
        }
        _ => Err(FrameError::TooLong(length)),
    }
}

/// Puts frames together from bytes as they arrive. Never holds more than one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// With nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there. Call until `None` after each [`Decoder::push`].
    pub fn next_frame<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        let Some((header, rest)) = self.pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body).map_err(FrameError::Malformed)?;
        self.pending.drain(..HEADER + length);
        Ok(Some(message))
    }

    /// Whether the stream may end here without loss.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ToVm, VmRequest};

    fn message(number: u64) -> ToVm {
        ToVm {
            number,
            request: VmRequest::Status,
        }
    }

    #[test]
    fn frames_survive_any_split() {
        let bytes: Vec<u8> = (0..3).flat_map(|n| encode(&message(n)).unwrap()).collect();
        for step in 1..bytes.len() {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                while let Some(next) = decoder.next_frame::<ToVm>().unwrap() {
                    seen.push(next);
                }
            }
            assert_eq!(seen, [message(0), message(1), message(2)]);
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut decoder = Decoder::new();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.next_frame::<ToVm>(), Err(FrameError::TooLong(_))));
        assert!(matches!(encode(&"x".repeat(FRAME_MAX)), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn garbage_is_an_error() {
        let mut decoder = Decoder::new();
        decoder.push(&[2, 0, 0, 0, b'{', b'x']);
        assert!(matches!(decoder.next_frame::<ToVm>(), Err(FrameError::Malformed(_))));
    }
}

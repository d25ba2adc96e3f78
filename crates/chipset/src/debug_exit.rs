//! The port by which a test payload ends its machine with a code.

use std::sync::Arc;

use device::BusHandler;

use crate::{GuestRequest, PowerSink};

/// A write of 1, 2 or 4 bytes ends the machine with the little-endian value. Mapped only in machines that ask for it.
pub struct DebugExit {
    sink: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 4;

    /// A port that tells `sink` of the exit code.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusHandler for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset != 0 || data.len() > 4 {
            return;
        }
        let code = data.iter().rev().fold(0, |code, &byte| code << 8 | u32::from(byte));
        self.sink.request(GuestRequest::DebugExit(code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn any_width_up_to_four_bytes_is_a_code() {
        let requests = Arc::new(Requests::default());
        let port = DebugExit::new(requests.clone());
        port.write(0, &[7]);
        port.write(0, &[0x34, 0x12]);
        port.write(0, &0xdead_beef_u32.to_le_bytes());
        port.write(0, &[1; 8]);
        port.write(1, &[1]);
        assert_eq!(requests.take(), [7, 0x1234, 0xdead_beef].map(GuestRequest::DebugExit));
    }
}

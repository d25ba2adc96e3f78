//! The vmlinux inside a bzImage: the x86 boot protocol's payload, LZ4-compressed in Debian's cloud kernel.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Offset of `setup_sects` in the setup header (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
/// Offset of `payload_offset`, counted from the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of `payload_length`.
const PAYLOAD_LENGTH: usize = 0x24c;
/// Magic of LZ4's legacy frame, the one the kernel's build uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Writes the vmlinux of `bzimage` to `vmlinux`.
pub fn extract(bzimage: &Path, vmlinux: &Path) -> Result<()> {
    let image = std::fs::read(bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    let payload =
        payload(&image).with_context(|| format!("{} is no bzImage with an LZ4 payload", bzimage.display()))?;
    let mut lz4 = Command::new("lz4")
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(File::create(vmlinux)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start lz4")?;
    if let Some(mut into) = lz4.stdin.take() {
        into.write_all(payload).context("lz4 stopped reading")?;
    }
    let ended = lz4.wait()?;
    let magic = std::fs::read(vmlinux)?.get(..4).map(<[u8]>::to_vec);
    ensure!(
        ended.success() && magic.as_deref() == Some(b"\x7fELF"),
        "the payload of {} did not unpack to an ELF file",
        bzimage.display()
    );
    Ok(())
}

/// The compressed kernel without the unpacked size that the build appends (4 bytes).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let code = (usize::from(*image.get(SETUP_SECTS)?) + 1) * 512;
    let start = code.checked_add(word(PAYLOAD_OFFSET)?)?;
    let end = start.checked_add(word(PAYLOAD_LENGTH)?)?.checked_sub(4)?;
    image.get(start..end).filter(|payload| payload.starts_with(&LZ4_LEGACY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_found_by_the_setup_header() {
        let mut image = vec![0u8; 4096];
        image[SETUP_SECTS] = 2;
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&12u32.to_le_bytes());
        let start = 3 * 512 + 16;
        image[start..start + 4].copy_from_slice(&LZ4_LEGACY);
        assert_eq!(payload(&image).map(<[u8]>::len), Some(8));
        image[start] = 0;
        assert_eq!(payload(&image), None, "another compression is told apart");
        assert_eq!(payload(&image[..100]), None, "a short file is told apart");
    }
}

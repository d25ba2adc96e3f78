//! Processors that an image can be made for.

use crate::format::words;

words! {
    /// The 29 values of the image service's `architecture` property.
    Architecture {
        /// DEC Alpha.
        Alpha = "alpha",
        /// ARM Cortex-A7.
        Armv7l = "armv7l",
        /// Axis ETRAX.
        Cris = "cris",
        /// Intel, sixth generation x86, 32 bits.
        I686 = "i686",
        /// Itanium.
        Ia64 = "ia64",
        /// Lattice Micro32.
        Lm32 = "lm32",
        /// Motorola 68000.
        M68k = "m68k",
        /// Xilinx, big endian.
        Microblaze = "microblaze",
        /// Xilinx, little endian.
        Microblazeel = "microblazeel",
        /// MIPS, 32 bits, big endian.
        Mips = "mips",
        /// MIPS, 32 bits, little endian.
        Mipsel = "mipsel",
        /// MIPS, 64 bits, big endian.
        Mips64 = "mips64",
        /// MIPS, 64 bits, little endian.
        Mips64el = "mips64el",
        /// OpenCores RISC.
        Openrisc = "openrisc",
        /// HP PA-RISC.
        Parisc = "parisc",
        /// HP PA-RISC, 64 bits.
        Parisc64 = "parisc64",
        /// PowerPC, 32 bits.
        Ppc = "ppc",
        /// PowerPC, 64 bits.
        Ppc64 = "ppc64",
        /// PowerPC, embedded.
        Ppcemb = "ppcemb",
        /// IBM mainframe, 32 bits.
        S390 = "s390",
        /// IBM mainframe, 64 bits.
        S390x = "s390x",
        /// SuperH 4, little endian.
        Sh4 = "sh4",
        /// SuperH 4, big endian.
        Sh4eb = "sh4eb",
        /// SPARC, 32 bits.
        Sparc = "sparc",
        /// SPARC, 64 bits.
        Sparc64 = "sparc64",
        /// UniCore.
        Unicore32 = "unicore32",
        /// x86, 64 bits.
        X86_64 = "x86_64",
        /// Tensilica, little endian.
        Xtensa = "xtensa",
        /// Tensilica, big endian.
        Xtensaeb = "xtensaeb",
    }
}

impl Architecture {
    /// Whether a KVM host of architecture `host` runs guests of this one: its own, and 32-bit x86 on 64-bit x86, where the
    /// processor itself has that mode.
    pub fn runs_on(self, host: Self) -> bool {
        self == host || (self == Self::I686 && host == Self::X86_64)
    }

    /// The name that was meant by one that other tools use, for the text of a refusal.
    pub(crate) fn meant_by(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "amd64" | "x86-64" | "x64" => Some(Self::X86_64),
            "i386" | "i486" | "i586" | "x86" | "386" => Some(Self::I686),
            "arm" | "armv7" | "armhf" => Some(Self::Armv7l),
            lower => Self::of(lower),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_29_and_a_host_runs_its_own() {
        assert_eq!(Architecture::ALL.len(), 29);
        assert_eq!(Architecture::of("aarch64"), None);
        assert_eq!(Architecture::meant_by("amd64"), Some(Architecture::X86_64));
        let run: Vec<_> = Architecture::ALL
            .iter()
            .filter(|arch| arch.runs_on(Architecture::X86_64))
            .collect();
        assert_eq!(run, [&Architecture::I686, &Architecture::X86_64]);
    }
}

//! What two hosts compare before a machine moves: processors, memory, versions.

use std::collections::BTreeSet;

use api_types::CpuFacts;
use spec::HugePages;

/// Words of `/proc/cpuinfo` that tell what the kernel does or found, rather than what a guest can be given (Linux
/// `asm/cpufeatures.h`, the words that are Linux's own): hosts may differ in them.
const OF_THE_KERNEL: [&str; 44] = [
    "constant_tsc",
    "nonstop_tsc",
    "nonstop_tsc_s3",
    "tsc_known_freq",
    "tsc_reliable",
    "rep_good",
    "nopl",
    "xtopology",
    "acc_power",
    "cpuid",
    "extd_apicid",
    "amd_dcm",
    "aperfmperf",
    "arch_perfmon",
    "art",
    "bts",
    "pebs",
    "up",
    "eagerfpu",
    "ring3mwait",
    "cpuid_fault",
    "cpb",
    "epb",
    "cat_l3",
    "cat_l2",
    "cdp_l3",
    "cdp_l2",
    "invpcid_single",
    "hw_pstate",
    "proc_feedback",
    "pti",
    "retpoline",
    "retpoline_amd",
    "intel_ppin",
    "amd_ppin",
    "intel_pt",
    "ssbd",
    "ibrs",
    "ibpb",
    "stibp",
    "ibrs_enhanced",
    "hypervisor",
    "flush_l1d",
    "arch_capabilities",
];
/// Prefixes of words about virtualization itself, which is the host's matter.
const OF_THE_HOST: [&str; 6] = ["vmx", "svm", "ept", "vpid", "tpr_shadow", "vnmi"];

/// What this host's processors can do.
pub(super) fn cpu() -> std::io::Result<CpuFacts> {
    Ok(parse_cpu(&std::fs::read_to_string("/proc/cpuinfo")?))
}

fn parse_cpu(text: &str) -> CpuFacts {
    let value = |key: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().map(str::trim) == Some(key));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim())
    };
    let words = value("flags").unwrap_or_default().split_whitespace();
    let of_guests = words.filter(|word| !OF_THE_KERNEL.contains(word) && !OF_THE_HOST.contains(word));
    let features: BTreeSet<String> = of_guests.map(str::to_owned).collect();
    CpuFacts {
        vendor: value("vendor_id").unwrap_or_default().to_owned(),
        features: features.into_iter().collect(),
    }
}

/// Why a guest that saw `source` can not go on with `target`, if it can not.
pub(super) fn compare(source: &CpuFacts, target: &CpuFacts) -> Option<String> {
    if source.vendor != target.vendor {
        return Some(format!(
            "the source has processors of {:?}, this host of {:?}; a running guest can not change between them",
            source.vendor, target.vendor
        ));
    }
    let missing: Vec<_> = source
        .features
        .iter()
        .filter(|feature| !target.features.contains(feature))
        .map(String::as_str)
        .collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!("the processors of this host lack what the guest may use: {missing}")
    })
}

/// Memory that can be had without swapping, bytes (`MemAvailable` of `/proc/meminfo`, proc(5)), or in huge pages of the wanted size.
pub(super) fn available_bytes(pages: Option<HugePages>) -> Option<u64> {
    if let Some(pages) = pages {
        let kib = pages.bytes() >> 10;
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages");
        let free: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
        return Some(free.saturating_mul(pages.bytes()));
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Whether a machine of a daemon of version `source` can be taken by one of `target`: states of older releases are read, those of newer
/// ones are not.
pub(super) fn understands(target: &str, source: &str) -> bool {
    let parts = |version: &str| -> Option<Vec<u64>> {
        let plain = version.split(['-', '+']).next()?;
        plain.split('.').map(|part| part.parse().ok()).collect()
    };
    match (parts(target), parts(source)) {
        (Some(target), Some(source)) => target >= source,
        _ => target == source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 vmx constant_tsc avx2\nbugs\t\t: x\n\nprocessor\t: 1\nflags\t\t: fpu\n";

    #[test]
    fn only_what_a_guest_can_see_is_compared() {
        let facts = parse_cpu(CPUINFO);
        assert_eq!(facts.vendor, "GenuineIntel");
        assert_eq!(facts.features, ["avx2", "fpu", "sse2"]);
        assert_eq!(compare(&facts, &facts), None);
        let lesser = CpuFacts {
            features: vec!["fpu".to_owned()],
            ..facts.clone()
        };
        assert!(compare(&facts, &lesser).unwrap().ends_with("avx2, sse2"));
        assert_eq!(compare(&lesser, &facts), None);
        let other = CpuFacts {
            vendor: "AuthenticAMD".to_owned(),
            ..facts.clone()
        };
        assert!(compare(&facts, &other).is_some());
        assert!(!cpu().unwrap().features.is_empty());
        assert!(available_bytes(None).unwrap() > 16 << 20);
    }

    #[test]
    fn older_releases_are_understood_and_newer_ones_are_not() {
        for (target, source, is_understood) in [
            ("0.1.0", "0.1.0", true),
            ("0.2.0", "0.1.9", true),
            ("0.10.0", "0.9.0", true),
            ("0.1.0", "0.1.1", false),
            ("1.0.0-rc1", "0.9.0", true),
            ("x", "x", true),
            ("x", "1.0", false),
        ] {
            assert_eq!(understands(target, source), is_understood, "{target} {source}");
        }
    }
}

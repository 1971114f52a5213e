//! Which instruction sets this processor lacks. `is_x86_feature_detected!` cannot tell: it answers `true` without
//! asking for whatever the binary was compiled to use.
#![allow(unsafe_code)]

/// Returns the x86-64 features, by Rust's names, that this processor or its system does not offer.
#[cfg(target_arch = "x86_64")]
pub(in crate::engine) fn lacking() -> Vec<&'static str> {
    use std::arch::x86_64::__cpuid;
    use std::arch::x86_64::__cpuid_count;
    let highest = __cpuid(0).eax;
    let one = __cpuid(1);
    let seven = (highest >= 7).then(|| __cpuid_count(7, 0));
    let (seven_b, seven_c) = seven.map_or((0, 0), |leaf| (leaf.ebx, leaf.ecx));
    let extended = if __cpuid(0x8000_0000).eax > 0x8000_0000 {
        __cpuid(0x8000_0001).ecx
    } else {
        0
    };
    let state = if one.ecx & (1 << 27) == 0 { 0 } else { enabled_state() };
    // What the system saves when it switches tasks: without it the wide registers cannot be used.
    let (wide, widest) = (state & 0x6 == 0x6, state & 0xe6 == 0xe6);
    let has = |word: u32, bit: u32| word & (1 << bit) != 0;
    let features = [
        ("sse3", has(one.ecx, 0)),
        ("ssse3", has(one.ecx, 9)),
        ("fma", has(one.ecx, 12) && wide),
        ("sse4.1", has(one.ecx, 19)),
        ("sse4.2", has(one.ecx, 20)),
        ("movbe", has(one.ecx, 22)),
        ("popcnt", has(one.ecx, 23)),
        ("avx", has(one.ecx, 28) && wide),
        ("f16c", has(one.ecx, 29) && wide),
        ("bmi1", has(seven_b, 3)),
        ("avx2", has(seven_b, 5) && wide),
        ("bmi2", has(seven_b, 8)),
        ("avx512f", has(seven_b, 16) && widest),
        ("avx512dq", has(seven_b, 17) && widest),
        ("avx512cd", has(seven_b, 28) && widest),
        ("avx512bw", has(seven_b, 30) && widest),
        ("avx512vl", has(seven_b, 31) && widest),
        ("avx512vbmi", has(seven_c, 1) && widest),
        ("avx512vnni", has(seven_c, 11) && widest),
        ("lzcnt", has(extended, 5)),
    ];
    features
        .into_iter()
        .filter(|(_, present)| !present)
        .map(|(name, _)| name)
        .collect()
}

/// Returns the register states that the system has enabled (XCR0). Only to be called where `OSXSAVE` is reported.
#[cfg(target_arch = "x86_64")]
fn enabled_state() -> u32 {
    let low: u32;
    // SAFETY: `xgetbv` with register 0 exists where OSXSAVE is set, which the caller has checked; it only reads.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low
}

/// Other architectures are compiled to their baseline.
#[cfg(not(target_arch = "x86_64"))]
pub(in crate::engine) fn lacking() -> Vec<&'static str> {
    Vec::new()
}

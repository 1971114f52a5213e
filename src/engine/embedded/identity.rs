//! What the embedded engine is: the facts that decide its bytes and figures.
//!
//! Left out on purpose: thread counts (results do not depend on them), paths, host names, the version of forge itself.
//! In their place stand two numbers that are raised when forge's own code changes results ([`QUANTIZER_REVISION`],
//! [`EVALUATOR_REVISION`]).

use std::collections::BTreeMap;

use super::sys;
use crate::engine::EngineError;
use crate::engine::Identity;
use crate::engine::Role;

/// The engine's name in recipes, in `forge.toml` and in identities.
pub(in crate::engine) const NAME: &str = "embedded";

/// Raised when forge's own part of quantizing (conversion of the source, use of importances) changes bytes.
const QUANTIZER_REVISION: u32 = 1;
/// Raised when forge's own part of evaluating (batches, context settings, formulas, codecs) changes results.
const EVALUATOR_REVISION: u32 = 1;

/// Returns the identity of what quantizes: it decides the bytes of a tensor.
pub(in crate::engine) fn quantizer() -> Identity {
    let mut facts = common();
    facts.insert("revision".to_owned(), QUANTIZER_REVISION.to_string());
    Identity::new(NAME, Role::Quantizer, facts)
}

/// Returns the identity of what computes with models: it decides importances, logits and figures.
pub(in crate::engine) fn evaluator() -> Identity {
    let mut facts = common();
    facts.insert("revision".to_owned(), EVALUATOR_REVISION.to_string());
    facts.insert("ggml options".to_owned(), env!("FORGE_ENGINE_OPTIONS").to_owned());
    let devices: Vec<String> = sys::devices()
        .into_iter()
        .map(|(name, description)| {
            if name == "CPU" {
                name
            } else {
                format!("{name} ({description})")
            }
        })
        .collect();
    facts.insert("devices".to_owned(), devices.join(", "));
    Identity::new(NAME, Role::Evaluator, facts)
}

/// Says whether this build computes on devices of the machine besides its processor. If not, the program itself and the C
/// library decide what it computes.
pub(in crate::engine) fn has_devices() -> bool {
    cfg!(any(
        feature = "cuda",
        feature = "vulkan",
        feature = "rocm",
        feature = "metal"
    ))
}

/// Facts that matter to both: sources, compiler, flags, target and the C library, whose `qsort` breaks ties in the IQ1
/// kernels and whose `expf`, `sinf` and `cosf` the model's operations call.
fn common() -> BTreeMap<String, String> {
    let (llama, ggml, commit) = sys::versions();
    [
        ("crate", format!("llama-cpp-sys-2 {}", env!("FORGE_ENGINE_CRATE"))),
        ("crate checksum", env!("FORGE_ENGINE_CRATE_CHECKSUM").to_owned()),
        ("llama.cpp", llama),
        ("ggml", format!("{ggml} {commit}")),
        ("c compiler", env!("FORGE_ENGINE_CC").to_owned()),
        ("c flags", env!("FORGE_ENGINE_CFLAGS").to_owned()),
        ("c++ compiler", env!("FORGE_ENGINE_CXX").to_owned()),
        ("c++ flags", env!("FORGE_ENGINE_CXXFLAGS").to_owned()),
        ("target", env!("FORGE_ENGINE_TARGET").to_owned()),
        ("cpu", env!("FORGE_ENGINE_CPU").to_owned()),
        ("c library", sys::c_library()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Refuses a processor that lacks an instruction set this binary was compiled to use: it would die by SIGILL later.
pub(in crate::engine) fn check_cpu() -> Result<(), EngineError> {
    let level = env!("FORGE_ENGINE_CPU");
    let missing = missing(level, &super::cpu::lacking());
    if missing.is_empty() {
        Ok(())
    } else {
        Err(EngineError::Processor {
            missing,
            level: level.to_owned(),
        })
    }
}

/// Returns the features of `level` (comma separated) that are among `lacking`.
fn missing(level: &str, lacking: &[&str]) -> Vec<String> {
    level
        .split(',')
        .filter(|feature| lacking.contains(feature))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_known_and_the_two_roles_differ() {
        let (quantizer, evaluator) = (quantizer(), evaluator());
        assert_ne!(quantizer.fingerprint(), evaluator.fingerprint());
        assert_eq!(quantizer.fingerprint(), super::quantizer().fingerprint());
        for identity in [&quantizer, &evaluator] {
            for (name, value) in &identity.facts {
                assert!(
                    value != "unknown" && !value.ends_with(" unknown") || name == "ggml",
                    "{name}: {value}"
                );
            }
            for name in ["crate", "llama.cpp", "c compiler", "target", "c library"] {
                assert!(identity.facts[name].len() > 2, "{name}: {:?}", identity.facts[name]);
            }
            let back: Identity = serde_json::from_slice(&identity.document()).unwrap();
            assert_eq!(&back, identity);
        }
        assert!(evaluator.facts["devices"].contains("CPU"), "{evaluator:?}");
    }

    #[test]
    fn any_other_fact_is_another_engine() {
        let before = quantizer();
        for name in before.facts.keys() {
            let mut after = before.clone();
            after.facts.insert(name.clone(), "other".to_owned());
            assert_ne!(before.fingerprint(), after.fingerprint(), "{name}");
        }
    }

    #[test]
    fn this_processor_runs_this_build_and_an_older_one_is_named() {
        check_cpu().unwrap();
        assert_eq!(
            missing("avx,avx2,fma,sse", &["avx2", "fma", "avx512f"]),
            ["avx2", "fma"]
        );
        let error = EngineError::Processor {
            missing: vec!["avx2".to_owned()],
            level: "avx,avx2".to_owned(),
        };
        assert!(error.to_string().contains("lacks avx2"), "{error}");
    }
}

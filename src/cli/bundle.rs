//! `forge bundle`: signed manifests in the formats of other tools.

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::targets::written;
use crate::cli::terminal::Terminal;
use crate::fs;
use crate::manifest::Manifest;
use crate::prose;
use crate::sign::Bundle;
use crate::sign::Envelope;
use crate::verify;
use crate::verify::Target;

pub(super) fn run(args: &args::Bundle, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut text = String::new();
    let targets = written(&args.outputs, files, terminal)?;
    for target in &targets {
        let envelope = envelope(target)?;
        match args.format {
            args::BundleFormat::InToto => {
                text.push_str(&String::from_utf8_lossy(&envelope.to_bytes()));
                text.push('\n');
            }
            args::BundleFormat::Sigstore => {
                let bundle = Bundle::of(&envelope).filter(|_| targets.len() == 1);
                let Some(bundle) = bundle else {
                    let several = Diagnostic::error("a Sigstore bundle holds one manifest with one signature");
                    let hint = "`--format in-toto` holds any number";
                    return Err(Failure::new(Exit::Usage, several.code("usage").hint(hint)));
                };
                text = bundle.to_line();
            }
        }
    }
    let path = files.path(&args.output);
    fs::write_atomic(&path, text.as_bytes(), fs::Durability::Synced)
        .map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
    let count = targets.len();
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": json::SCHEMA,
            "reason": "bundled",
            "file": path.display().to_string(),
            "manifests": count,
        });
        terminal.data(&format!("{line}\n"));
    } else {
        terminal.line(&format!(
            "wrote {}: {}",
            path.display(),
            prose::count(count as u64, "signed manifest")
        ));
    }
    Ok(Exit::Done)
}

/// Reads a manifest's signatures; those of other bytes are not exported.
fn envelope(target: &Target) -> Result<Envelope, Failure> {
    let broken = |what: String| Failure::new(Exit::Recipe, Diagnostic::error(what).code("bundle::manifest"));
    let manifest = verify::read_manifest(&target.manifest).map_err(|error| broken(error.to_string()))?;
    let name = target.manifest.display();
    Manifest::parse(&manifest).map_err(|error| broken(format!("`{name}`: {error}")))?;
    let path = target.signatures();
    let name = path.display();
    let bytes = verify::read_signatures(&path).map_err(|error| broken(error.to_string()))?;
    let Some(bytes) = bytes else {
        let unsigned = Diagnostic::error(format!("there is no `{name}`")).code("bundle::unsigned");
        return Err(Failure::new(
            Exit::Recipe,
            unsigned.hint(format!("`forge sign {} --key KEY` signs it", target.manifest.display())),
        ));
    };
    let envelope = Envelope::parse(&bytes).map_err(|error| broken(format!("`{name}`: {error}")))?;
    match envelope.problems(&manifest, &[]).first() {
        None => Ok(envelope),
        Some(problem) => Err(broken(format!("`{name}`: {problem}"))),
    }
}

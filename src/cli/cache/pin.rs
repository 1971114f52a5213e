//! `forge cache pin` and `forge cache unpin`.

use std::path::Path;

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::cache::open;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::terminal::Terminal;
use crate::digest::Hash;
use crate::prose;
use crate::store::Pin;
use crate::store::Store;

pub(super) fn pin(args: &args::Pin, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    if args.targets.is_empty() {
        let pins = store.pins().map_err(|error| failure(&error))?;
        for pin in &pins {
            if terminal.is_json() {
                line(terminal, "cache-pin", facts(pin));
            } else {
                terminal.data(Block::of(format_args!("{}  {}\n", pin.manifest.hash.short(), pin.output)).as_str());
            }
        }
        if pins.is_empty() && !terminal.is_json() {
            terminal.line("forge: nothing is pinned");
        }
        return Ok(Exit::Done);
    }
    for target in &args.targets {
        for manifest in manifests(&store, files, target)? {
            let pinned = store.pin(target, &manifest).map_err(|error| failure(&error))?;
            if terminal.is_json() {
                let mut fields = facts(&pinned.pin);
                fields["kept"] = json!(pinned.kept);
                fields["missing"] = json!(pinned.gone);
                fields["borrowed"] = json!(pinned.borrowed.values().sum::<u64>());
                line(terminal, "cache-pin", fields);
                continue;
            }
            let how = if pinned.again {
                "was already pinned"
            } else {
                "is pinned"
            };
            terminal.line(&format!(
                "forge: `{}` {how}: {} kept",
                pinned.pin.output,
                prose::count(pinned.kept as u64, "result")
            ));
            for (file, bytes) in &pinned.borrowed {
                terminal.line(&format!(
                    "forge: {} of that are tensors in `{}`: kept as long as that file is unchanged",
                    prose::bytes(*bytes),
                    file.display()
                ));
            }
            if pinned.gone > 0 {
                let gone = prose::count(pinned.gone as u64, "result");
                let warning = Diagnostic::warning(format!("{gone} of it are missing from the store"));
                terminal.diagnostic(&warning.hint("build its recipe to restore them"));
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) fn unpin(args: &args::Unpin, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    let pins = store.pins().map_err(|error| failure(&error))?;
    for target in &args.targets {
        let name = target.to_string_lossy();
        let digits = |pin: &Pin| name.len() >= 8 && pin.manifest.hash.to_string().starts_with(&*name);
        let mut found: Vec<&Pin> = pins.iter().filter(|pin| pin.output == name || digits(pin)).collect();
        if found.is_empty() {
            // A file that is not a manifest is not pinned.
            let hashes: Vec<Hash> = manifests(&store, files, target)
                .unwrap_or_default()
                .iter()
                .map(|manifest| Hash::of(manifest))
                .collect();
            found = pins.iter().filter(|pin| hashes.contains(&pin.manifest.hash)).collect();
        }
        if found.is_empty() {
            let none = Diagnostic::error(format!("`{name}` is not pinned")).code("cache::not-pinned");
            return Err(Failure::new(Exit::Recipe, none.hint("`forge cache pin` lists what is")));
        }
        for pin in found {
            store.unpin(&pin.manifest.hash).map_err(|error| failure(&error))?;
            if terminal.is_json() {
                line(terminal, "cache-unpin", facts(pin));
            } else {
                terminal.line(&format!("forge: `{}` is no longer pinned", pin.output));
            }
        }
    }
    Ok(Exit::Done)
}

fn facts(pin: &Pin) -> serde_json::Value {
    json!({ "manifest": pin.manifest.to_string(), "output": pin.output, "pinned": pin.pinned })
}

/// Reads the manifests that a name means: a file, or a run of the store.
fn manifests(store: &Store, files: &Files, target: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let missing = match Store::read_manifest(&files.path(target)) {
        Ok(manifest) => return Ok(vec![manifest]),
        Err(error) => error,
    };
    let of_run = store
        .manifests_of_run(&target.to_string_lossy())
        .map_err(|error| failure(&error))?;
    if of_run.is_empty() {
        let none = Diagnostic::from_error(&missing).code("cache::no-manifest");
        return Err(Failure::new(
            Exit::Recipe,
            none.hint("name a manifest (`.manifest.json`), the output that it belongs to, or a run of the store"),
        ));
    }
    Ok(of_run)
}

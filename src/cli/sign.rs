//! `forge sign`, `forge key`, and `--sign` of `forge build`.

use std::path::Path;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::targets::written;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::graph::NodeId;
use crate::scheduler::Report;
use crate::session::Session;
use crate::session::signing;
use crate::session::signing::SignError;
use crate::session::signing::Signing;
use crate::sign::KeyError;
use crate::sign::PublicKey;
use crate::sign::SecretKey;
use crate::step::promote;
use crate::verify::Target;

pub(super) fn run(args: &args::Sign, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let path = files.signing_key(args.key.as_deref(), files.directory())?;
    let Some(path) = path else {
        let missing = Diagnostic::error("no key was given").code("usage::no-key");
        return Err(Failure::new(
            Exit::Usage,
            missing.hint("`--key KEY`, or `[signing] key` of forge.toml; `forge key new FILE` makes one"),
        ));
    };
    let key = SecretKey::load(&path).map_err(|error| key_failure(&error))?;
    // All of them are there before the first is signed.
    for target in written(&args.outputs, files, terminal)? {
        sign(&target, &key, terminal)?;
    }
    Ok(Exit::Done)
}

fn sign(target: &Target, key: &SecretKey, terminal: &Terminal) -> Result<(), Failure> {
    let (path, signing) = signing::sign_manifest(target, key).map_err(|error| failure(&error))?;
    let word = match signing {
        Signing::New => "new",
        Signing::Added => "added",
        Signing::Replaced => "replaced",
        Signing::Unchanged => "unchanged",
    };
    let id = key.public().id();
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": json::SCHEMA,
            "reason": "signed",
            "file": path.display().to_string(),
            "key": id.as_str(),
            "signature": word,
        });
        terminal.data(&format!("{line}\n"));
    } else if !terminal.quiet {
        let what = match signing {
            Signing::Unchanged => "was already signed",
            Signing::Replaced => "signed again",
            _ => "signed",
        };
        terminal.line(&format!("{what} by {}: {}", id.short(), path.display()));
    }
    Ok(())
}

/// Returns the key with which a build signs, if it does.
pub(super) fn key_of_build(
    target: &files::Target,
    asked: Option<&Path>,
    files: &Files,
) -> Result<Option<SecretKey>, Failure> {
    let folder = files.folder(&target.recipe);
    let path = files.signing_key(asked, &folder)?;
    path.map(|path| SecretKey::load(&path).map_err(|error| key_failure(&error)))
        .transpose()
}

/// Signs the manifests of the candidates that a build has brought up to date, as far as they are not signed by the key.
pub(super) fn sign_outputs(
    session: &Session,
    report: &Report,
    key: &SecretKey,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let failed = |id: &NodeId| report.failures.iter().any(|failure| failure.node == *id);
    for node in session.graph().nodes() {
        let done = report.outcomes.contains_key(&node.id) && !failed(&node.id);
        if let (Some(id), true) = (promote::candidate(node), done) {
            let target = Target::of_output(&session.out().join(container::file_name(&id.label())));
            let envelope = target.signatures();
            // What is signed already is not worth a line for each build.
            let silent = crate::fs::exists(&envelope).unwrap_or(false) && signing::is_signed(&target, key.public());
            if !silent {
                sign(&target, key, terminal)?;
            }
        }
    }
    Ok(())
}

pub(super) fn key(args: &args::Key, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let (file, public) = match &args.command {
        args::KeyCommand::New { file } => {
            let path = files.path(file);
            let key = SecretKey::generate().map_err(|error| key_failure(&error))?;
            let public = key.save_new(&path).map_err(|error| key_failure(&error))?;
            if !terminal.is_json() {
                terminal.line(&format!("wrote {} (secret) and {}", path.display(), public.display()));
            }
            (public, key.public().clone())
        }
        args::KeyCommand::Show { file } => {
            let path = files.path(file);
            let key = PublicKey::load(&path).map_err(|error| key_failure(&error))?;
            (path, key)
        }
    };
    let pem = public.to_pem().map_err(|error| key_failure(&error))?;
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": json::SCHEMA,
            "reason": "key",
            "file": file.display().to_string(),
            "key": public.id().as_str(),
            "public": pem,
        });
        terminal.data(&format!("{line}\n"));
    } else {
        terminal.data(&format!("{}\n{pem}", public.id()));
    }
    Ok(Exit::Done)
}

pub(super) fn key_failure(error: &KeyError) -> Failure {
    let exists = matches!(error, KeyError::Path(error) if error.kind() == std::io::ErrorKind::AlreadyExists);
    let diagnostic = Diagnostic::from_error(error).code("sign::key");
    let diagnostic = match error {
        KeyError::Path(_) if exists => diagnostic.hint("keys are never overwritten: choose another name"),
        KeyError::Form { .. } => diagnostic.hint("`forge key new FILE` makes a key; `ssh-keygen -t ed25519` does, too"),
        KeyError::Exposed { path, .. } => diagnostic.hint(format!("remove the access of others: chmod 600 {}", path.display())),
        KeyError::Encrypted { .. } => diagnostic.hint(
            "make a copy without a passphrase that only you can read: `openssl pkey -in KEY -out COPY`, or `ssh-keygen -p -f COPY`",
        ),
        _ => diagnostic,
    };
    Failure::new(Exit::Environment, diagnostic)
}

pub(super) fn failure(error: &SignError) -> Failure {
    match error {
        SignError::Path(path) if path.is_not_found() => {
            let missing = Diagnostic::error(format!("there is no `{}`", path.path.display())).code("sign::manifest");
            Failure::new(
                Exit::Recipe,
                missing.hint("`forge build` writes manifests beside candidates"),
            )
        }
        SignError::Path(_) => Failure::new(Exit::Environment, Diagnostic::from_error(error).code("sign::file")),
        SignError::Manifest { .. } => Failure::new(
            Exit::Recipe,
            Diagnostic::error(error.to_string()).code("sign::manifest"),
        ),
        SignError::Envelope { .. } => {
            let other = Diagnostic::error(error.to_string()).code("sign::envelope");
            Failure::new(
                Exit::Recipe,
                other.hint("move it: forge writes signatures to this file"),
            )
        }
    }
}

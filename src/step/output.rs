//! Files in the output folder: complete or absent, never linked to the store, checked by their stamp.

use std::path::Path;
use std::path::PathBuf;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs;
use crate::observer::Event;
use crate::step::Env;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::store::OutputLock;
use crate::store::StoreError;
use crate::work::Context;

/// Returns the path of an output. Names were checked with the recipe; a link that leads elsewhere is refused here.
pub fn path(env: &Env<'_>, name: &str) -> Result<PathBuf, StepError> {
    fs::safe_join(&env.out, Path::new(name)).map_err(|error| StepError::input(error.to_string()))
}

/// Returns whether an output's file exists; true if that cannot be determined.
pub fn is_there(env: &Env<'_>, name: &str) -> bool {
    path(env, name).is_ok_and(|path| fs::exists(&path).unwrap_or(true))
}

/// Returns the file if it exists with the expected content. A file with an unknown stamp is read, but only when its stamp is old
/// enough that a later change would change it. Evaluations rely on that.
pub fn intact(env: &Env<'_>, path: &Path, digest: &BlobDigest) -> Result<Option<SourceFile>, StepError> {
    match fs::Stamp::of_plain_file(path)? {
        Some(stamp) if stamp.size == digest.len => {}
        _ => return Ok(None),
    }
    let (found, stamp) = match env.store.digest_settled(path, &|_| {}) {
        // Another build is writing this file. The caller checks again when it has the lock.
        Err(StoreError::SourceChanged { .. }) => return Ok(None),
        looked => looked?,
    };
    Ok((found == *digest).then(|| SourceFile {
        path: path.to_owned(),
        digest: found,
        stamp,
    }))
}

/// Waits for the lock to read and replace an output, as [`Store::lock_output`](crate::store::Store::lock_output)
/// does. The output folder must exist.
pub fn lock(work: &Context<'_>, path: &Path, key: ActionDigest) -> Result<OutputLock, StepError> {
    let lock = work.store().lock_output(
        path,
        &mut |holder| {
            work.report(Event::Waiting {
                step: work.step.clone(),
                key,
                holder: holder.to_string(),
            });
        },
        &|| work.cancel().is_cancelled(),
    )?;
    lock.ok_or(StepError::Stopped)
}

/// Reports a file that was just written, with the stamp that it has now.
pub fn written(work: &Context<'_>, path: &Path, digest: &BlobDigest, stamp: fs::Stamp) -> SourceFile {
    work.report(Event::OutputWritten {
        step: work.step.clone(),
        path: path.display().to_string(),
        digest: *digest,
    });
    SourceFile {
        path: path.to_owned(),
        digest: *digest,
        stamp,
    }
}

/// Copies a blob of the store to an output's path, unless it is there. `key` is the action that created it.
pub fn place(
    env: &Env<'_>,
    work: &Context<'_>,
    name: &str,
    key: ActionDigest,
    digest: &BlobDigest,
) -> Result<SourceFile, StepError> {
    let path = path(env, name)?;
    fs::create_dir_all(&env.out)?;
    let _lock = lock(work, &path, key)?;
    if let Some(file) = intact(env, &path, digest)? {
        return Ok(file);
    }
    let stamp = work.store().materialize(digest, &path)?;
    work.note_written();
    Ok(written(work, &path, digest, stamp))
}

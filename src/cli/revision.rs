//! Files of git revisions, as `HEAD~1:recipe.toml` names them.

use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::diagnostic::Diagnostic;
use crate::fs;
use crate::recipe::LoadError;
use crate::text::Source;

/// A file of a revision.
pub(super) struct Revision {
    /// As the user wrote it.
    pub(super) word: String,
    /// A name of git for the commit.
    commit: String,
    /// Below `base`.
    path: String,
    base: Base,
}

/// What a path of a revision starts from.
enum Base {
    /// The folder in which forge works.
    Here(PathBuf),
    /// The root of the repository.
    Root(PathBuf),
}

impl Revision {
    /// Finds the file of a revision that a word names: below `folder`, in which forge works, or else below the root of the
    /// repository. `None` if the word is a file's, or has no revision.
    ///
    /// # Errors
    ///
    /// Git does not know the revision, or the revision has no such file.
    pub(super) fn find(word: &str, folder: &Path) -> Result<Option<Self>, Failure> {
        let Some((revision, path)) = word.split_once(':') else {
            return Ok(None);
        };
        let is_other = revision.is_empty() || revision.starts_with('-') || path.is_empty();
        if is_other || fs::exists(&folder.join(word)).unwrap_or(false) {
            return Ok(None);
        }
        let here = Self {
            word: word.to_owned(),
            commit: revision.to_owned(),
            path: path.to_owned(),
            base: Base::Here(folder.to_owned()),
        };
        let Err(problem) = here.read(path) else {
            return Ok(Some(here));
        };
        let root = git(folder, &["rev-parse", "--show-toplevel"]).ok();
        let root = root.and_then(|root| String::from_utf8(root).ok());
        if let Some(root) = root {
            let root = Self {
                base: Base::Root(PathBuf::from(root.trim_end())),
                ..here
            };
            if root.read(path).is_ok() {
                return Ok(Some(root));
            }
        }
        let unreadable = Diagnostic::error(format!("`{word}` cannot be read from git"))
            .code("usage::revision")
            .caused_by(problem)
            .hint("write `REVISION:PATH`, such as `HEAD~1:recipe.toml`, with the path from this folder or from the repository's root");
        Err(Failure::new(Exit::Usage, unreadable))
    }

    /// Returns where the file is in the working tree, if it is still there: its folder is where its other files are.
    pub(super) fn in_working_tree(&self) -> PathBuf {
        match &self.base {
            // As other words of the command line, from the folder in which forge works.
            Base::Here(_) => PathBuf::from(&self.path),
            Base::Root(root) => root.join(&self.path),
        }
    }

    /// Reads the file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, String> {
        self.read(&self.path)
    }

    /// Reads the file as text.
    pub(super) fn source(&self) -> Result<Source, LoadError> {
        self.text(&self.path, &self.word)
    }

    /// Reads a file that is named relative to this one, of the same revision.
    pub(super) fn beside(&self, other: &str) -> Result<Source, LoadError> {
        let path = Path::new(&self.path).parent().unwrap_or(Path::new("")).join(other);
        let path = normalized(&path).to_string_lossy().into_owned();
        self.text(&path, &format!("{}:{path}", self.commit))
    }

    fn text(&self, path: &str, name: &str) -> Result<Source, LoadError> {
        let bytes = self.read(path).map_err(|message| LoadError { message })?;
        let text = String::from_utf8(bytes).map_err(|error| LoadError {
            message: format!("it is not UTF-8: byte {} is wrong", error.utf8_error().valid_up_to()),
        })?;
        Ok(Source::new(name, text))
    }

    /// Reads a file of the revision, as `git show` prints it.
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let (folder, prefix) = match &self.base {
            Base::Here(folder) => (folder, "./"),
            Base::Root(root) => (root, ""),
        };
        git(
            folder,
            &["cat-file", "blob", &format!("{}:{prefix}{path}", self.commit)],
        )
    }
}

/// Runs git, and returns what it prints, or why that failed.
fn git(folder: &Path, args: &[&str]) -> Result<Vec<u8>, String> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let output = Command::new("git").args(args).current_dir(folder).output();
    let output = output.map_err(|error| format!("git does not start: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("git failed without a message");
    Err(first.trim_start_matches("fatal: ").to_owned())
}

/// Removes `.` and `..` from a path, as far as it has folders to leave.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(normalized.components().next_back(), Some(Component::Normal(_))) => {
                normalized.pop();
            }
            part => normalized.push(part),
        }
    }
    normalized
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_leads_nowhere() {
        for (path, expected) in [
            ("a/../base.toml", "base.toml"),
            ("./a/./b.toml", "a/b.toml"),
            ("../base.toml", "../base.toml"),
            ("a/b/../../../c", "../c"),
        ] {
            assert_eq!(normalized(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}

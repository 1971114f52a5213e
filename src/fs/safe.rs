//! Joins a path that somebody else wrote to a directory, or refuses.

use std::fs;
use std::io;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::PathError;

/// A path that may not be used here.
#[derive(Debug, thiserror::Error)]
pub enum UnsafePathError {
    /// The path is empty, or is the directory itself.
    #[error("`{}` names no file under `{}`", path.display(), root.display())]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// The directory it must stay in.
        root: PathBuf,
    },
    /// The path is absolute.
    #[error("`{}` is absolute; only paths under `{}` are allowed here", path.display(), root.display())]
    Absolute {
        /// The path as given.
        path: PathBuf,
        /// The directory it must stay in.
        root: PathBuf,
    },
    /// The path has a `..` in it.
    #[error("`{}` has a `..`; only paths under `{}` are allowed here", path.display(), root.display())]
    Parent {
        /// The path as given.
        path: PathBuf,
        /// The directory it must stay in.
        root: PathBuf,
    },
    /// The path goes through a symbolic link that leads outside, or nowhere.
    #[error(
        "`{}` goes through the symbolic link `{}`, which leads outside `{}`", path.display(), link.display(), root.display()
    )]
    Link {
        /// The path as given.
        path: PathBuf,
        /// The link on the way.
        link: PathBuf,
        /// The directory it must stay in.
        root: PathBuf,
    },
    /// The way could not be looked at.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Joins `relative` to `root` such that writing there cannot leave `root`: not absolute, no `..`, and no symbolic link
/// on the way (or at the end) that leads outside. What is not there yet is fine. `root` itself may be a link.
///
/// This guards against what a recipe, a manifest or a model file says, not against somebody who swaps directories
/// for links while the build runs: such a person can write there already.
pub fn safe_join(root: &Path, relative: &Path) -> Result<PathBuf, UnsafePathError> {
    let path = || relative.to_owned();
    let base = || root.to_owned();
    let mut joined = root.to_owned();
    let mut parts = 0_usize;
    for component in relative.components() {
        match component {
            Component::Normal(part) => {
                joined.push(part);
                parts += 1;
            }
            Component::CurDir => {}
            Component::ParentDir => {
                return Err(UnsafePathError::Parent {
                    path: path(),
                    root: base(),
                });
            }
            Component::RootDir | Component::Prefix(_) => {
                return Err(UnsafePathError::Absolute {
                    path: path(),
                    root: base(),
                });
            }
        }
    }
    if parts == 0 {
        return Err(UnsafePathError::Empty {
            path: path(),
            root: base(),
        });
    }
    let real_root = match fs::canonicalize(root) {
        Ok(real) => real,
        // Nothing is there yet, so no link is either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(joined),
        Err(error) => return Err(PathError::new(root, "resolve", error).into()),
    };
    let mut walked = root.to_owned();
    for component in joined.components().skip(root.components().count()) {
        walked.push(component);
        match fs::symlink_metadata(&walked) {
            Ok(facts) if facts.is_symlink() => {
                let inside = fs::canonicalize(&walked).is_ok_and(|real| real.starts_with(&real_root));
                if !inside {
                    return Err(UnsafePathError::Link {
                        path: path(),
                        link: walked,
                        root: base(),
                    });
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(PathError::new(&walked, "look at", error).into()),
        }
    }
    Ok(joined)
}

/// Returns a path from the root; the path as it is if the current folder is unknown. Links are not followed.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn join(root: &Path, relative: &str) -> Result<PathBuf, UnsafePathError> {
        safe_join(root, Path::new(relative))
    }

    #[test]
    fn paths_that_stay_inside_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("inner")).unwrap();
        assert_eq!(join(root, "a/b.gguf").unwrap(), root.join("a/b.gguf"));
        assert_eq!(join(root, "./a").unwrap(), root.join("a"));
        assert_eq!(
            join(root, "inner/a").unwrap(),
            root.join("inner/a"),
            "a link that stays inside is fine"
        );
        assert_eq!(
            join(root, "..a/b..").unwrap(),
            root.join("..a/b.."),
            "dots in names are fine"
        );
        assert_eq!(
            join(&root.join("later"), "a").unwrap(),
            root.join("later/a"),
            "the root may come later"
        );
    }

    #[test]
    fn every_way_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(dir.path().join("rooted")).unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        symlink("/nowhere/at/all", root.join("broken")).unwrap();
        symlink("../../rooted", root.join("sub/sibling")).unwrap();
        assert!(matches!(
            join(&root, "/etc/passwd"),
            Err(UnsafePathError::Absolute { .. })
        ));
        for bad in ["..", "../a", "sub/../../a", "sub/.."] {
            assert!(matches!(join(&root, bad), Err(UnsafePathError::Parent { .. })), "{bad}");
        }
        for bad in ["out", "out/a", "broken", "broken/a", "sub/sibling/a"] {
            assert!(matches!(join(&root, bad), Err(UnsafePathError::Link { .. })), "{bad}");
        }
        for bad in ["", ".", "./."] {
            assert!(
                matches!(join(&root, bad), Err(UnsafePathError::Empty { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(join(&root, "sub/a\0b/c"), Err(UnsafePathError::Path(_))));
    }
}

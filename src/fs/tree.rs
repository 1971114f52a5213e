//! Folder trees: lists files, creates temporary folders and links.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::PathError;
use crate::fs::Stamp;
use crate::fs::dir::create_dir;
use crate::fs::dir::list;
use crate::fs::write::unique_name;

/// A temporary folder, which is removed with all files in it.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    kept: bool,
}

impl TempDir {
    /// Creates an empty folder in `parent`.
    pub fn new_in(parent: &Path) -> Result<Self, PathError> {
        loop {
            // Without the leading dot of a temporary file, so that a search below it looks the same as anywhere.
            let path = parent.join(format!("forge{}", &unique_name()[".forge".len()..]));
            if create_dir(&path)? {
                // Other users cannot read temporary files.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                    .map_err(PathError::on(&path, "set the mode of"))?;
                return Ok(Self { path, kept: false });
            }
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed stays in a folder of temporary files.
            fs::remove_dir_all(&self.path).ok();
        }
    }
}

/// Makes a symbolic link at `link` to the file `target`, which is made absolute.
pub fn link_to(target: &Path, link: &Path) -> Result<(), PathError> {
    let target = std::path::absolute(target).map_err(PathError::on(target, "resolve"))?;
    std::os::unix::fs::symlink(target, link).map_err(PathError::on(link, "link"))
}

/// Calls `visit` with every plain file below a folder, in the order of names, depth first. Symbolic links to files are
/// followed, those to folders are not, so that every tree is finite. Unreadable folders are left out.
pub fn plain_files(folder: &Path, visit: &mut dyn FnMut(PathBuf, Stamp)) -> Result<(), PathError> {
    let mut left = vec![folder.to_owned()];
    let mut first = true;
    while let Some(folder) = left.pop() {
        let entries = match list(&folder) {
            Ok(entries) => entries,
            Err(error) if first => return Err(error),
            Err(_) => continue,
        };
        first = false;
        let mut folders = Vec::new();
        for entry in entries {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                folders.push(path);
            } else if let Ok(Some(stamp)) = Stamp::of_plain_file(&path) {
                visit(path, stamp);
            }
        }
        left.extend(folders.into_iter().rev());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_once_and_in_order() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["z", "b/c/d", "a"] {
            fs::write(root.join(name), name).unwrap();
        }
        link_to(&root, &root.join("b/loop")).unwrap();
        link_to(&root.join("a"), &root.join("link")).unwrap();
        link_to(Path::new("/nowhere"), &root.join("broken")).unwrap();
        let mut found = Vec::new();
        plain_files(&root, &mut |path, stamp| {
            found.push((path.strip_prefix(&root).unwrap().to_owned(), stamp.size));
        })
        .unwrap();
        let expected = [("a", 1), ("link", 1), ("z", 1), ("b/c/d", 5)];
        assert_eq!(found, expected.map(|(name, size)| (PathBuf::from(name), size)));
        assert!(plain_files(&root.join("nothing"), &mut |_, _| {}).is_err());
    }

    #[test]
    fn a_temporary_folder_is_removed_unless_it_is_kept() {
        let outer = tempfile::tempdir().unwrap();
        let gone = TempDir::new_in(outer.path()).unwrap();
        fs::write(gone.path().join("a"), b"").unwrap();
        let path = gone.path().to_owned();
        drop(gone);
        assert!(!path.exists());
        let mut kept = TempDir::new_in(outer.path()).unwrap();
        kept.keep();
        let path = kept.path().to_owned();
        drop(kept);
        assert!(path.exists());
    }
}

//! The environment: variables, the home folder, the terminal's width. Everything that forge itself reads of it is read here, so that
//! an empty variable counts as unset everywhere and `~` means the same everywhere.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;

use etcetera::BaseStrategy as _;

/// Help is not wider than this many columns.
const MAX_HELP_WIDTH: usize = 100;
/// Help does not become narrower than this many columns.
const MIN_HELP_WIDTH: usize = 40;

/// The home folder is not known, so a path that starts with `~` cannot be expanded.
#[derive(Debug, thiserror::Error)]
#[error("the home folder is unknown (`HOME` is not set), so `~` cannot be expanded in `{}`", .0.display())]
pub(super) struct HomeUnknown(PathBuf);

/// Returns the value of a variable; an empty one counts as unset.
#[expect(clippy::disallowed_methods, reason = "the one place that reads variables")]
pub(super) fn variable(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Returns the folders of the user by the XDG rules; `None` if the home folder is unknown.
fn user_folders() -> Option<impl etcetera::BaseStrategy> {
    let folders = etcetera::choose_base_strategy().ok()?;
    // An empty `HOME` would make them relative to the current folder.
    folders.home_dir().is_absolute().then_some(folders)
}

/// Returns the user's folder of forge's settings.
pub(super) fn config_dir() -> Option<PathBuf> {
    user_folders().map(|folders| folders.config_dir().join("forge"))
}

/// Returns the user's folder for forge's cache.
pub(super) fn cache_dir() -> Option<PathBuf> {
    user_folders().map(|folders| folders.cache_dir().join("forge"))
}

/// Returns the folder for temporary files.
pub(super) fn temporary_dir() -> PathBuf {
    let folder = std::env::temp_dir();
    if folder.as_os_str().is_empty() {
        PathBuf::from("/tmp")
    } else {
        folder
    }
}

/// Returns a path with the home folder for a first component `~`. Other users' folders (`~name`) are not looked up.
///
/// # Errors
///
/// The path starts with `~` and the home folder is unknown.
pub(super) fn expand_home(path: &Path) -> Result<PathBuf, HomeUnknown> {
    let Ok(rest) = path.strip_prefix("~") else {
        return Ok(path.to_owned());
    };
    let folders = user_folders().ok_or_else(|| HomeUnknown(path.to_owned()))?;
    Ok(if rest.as_os_str().is_empty() {
        folders.home_dir().to_owned()
    } else {
        folders.home_dir().join(rest)
    })
}

/// Returns how many columns help has: those of the terminal, or of `COLUMNS` where there is none, within bounds.
pub(super) fn help_width() -> usize {
    let terminal = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let columns = || variable("COLUMNS")?.to_str()?.parse().ok();
    terminal
        .or_else(columns)
        .unwrap_or(MAX_HELP_WIDTH)
        .clamp(MIN_HELP_WIDTH, MAX_HELP_WIDTH)
}

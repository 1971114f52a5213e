//! The files of a model, by their names alone.

use std::path::Path;
use std::path::PathBuf;

/// Returns the files of a model without opening any: its own name tells whether it is split.
pub fn shard_paths(path: &Path) -> Vec<PathBuf> {
    let parts = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
        let stem = name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let plain = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (plain(count) && plain(number)).then_some(())?;
        Some((prefix.to_owned(), count.parse::<u32>().ok()?))
    });
    match parts {
        Some((prefix, count)) if count > 0 => (1..=count)
            .map(|number| path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf")))
            .collect(),
        _ => vec![path.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_split_model_follow_from_one_name() {
        let name = |number| PathBuf::from(format!("/m/big-{number:05}-of-00003.gguf"));
        assert_eq!(shard_paths(&name(2)), [name(1), name(2), name(3)]);
        for single in [
            "/m/big.gguf",
            "/m/big-1-of-3.gguf",
            "/m/big-00001-of-00000.gguf",
            "/m/a-of-b.gguf",
        ] {
            assert_eq!(shard_paths(Path::new(single)), [PathBuf::from(single)]);
        }
    }
}

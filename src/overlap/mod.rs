//! How much of the text that candidates are evaluated on stands in another text.
//!
//! Texts are compared by shingles: runs of 13 words, without regard to case, punctuation and white space. 13 words are the
//! length by which GPT-3's training data were compared with its benchmarks (Brown et al. 2020, appendix C): unrelated texts
//! hardly share one. Each different shingle of the evaluation's text counts once, so a header in a hundred files counts as one.
//! Shingles of the notices of common licences (`notices.txt`) do not count at all.
//!
//! Memory is bounded: the shingles of the evaluation's text are held, the other text is streamed. Of an evaluation's text of
//! more than 16 MiB a sample is held, chosen by the hashes of the shingles, so that the same shingles are chosen of both texts.

mod shingles;
mod words;

use std::collections::BTreeMap;
use std::io;
use std::io::Read;
use std::ops::ControlFlow;

use serde::Deserialize;
use serde::Serialize;

use shingles::Held;
use shingles::Shingles;

/// The version of all that decides a result: words, shingles, notices.
pub const RULES: u32 = 1;
/// From this share of an evaluation's text on, in thousandths, it is not held out: Llama 2 calls a text clean below 20 % of
/// its tokens (Touvron et al. 2023, appendix A.6).
pub const SHARE: u32 = 200;
/// Shorter common passages are never reported, however short a chunk is: quotations, headers, tables of contents.
const SHORTEST: u64 = 40;
/// The most tokens that a word is taken to have. With the tokenizers in use, English has about 1.3 and code 2 to 3.
const TOKENS_PER_WORD: u64 = 4;
/// How many words of a passage are quoted.
const QUOTED: usize = 10;

/// Returns how many words a chunk of so many tokens has at least. Whoever has so many words in common may have a whole chunk in
/// common; fewer are not reported.
pub fn words_of_chunk(context: u32) -> u64 {
    (u64::from(context) / TOKENS_PER_WORD).max(SHORTEST)
}

/// One of the two texts that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What candidates are evaluated on.
    Evaluation,
    /// What they were calibrated on.
    Calibration,
}

/// The files of two texts.
pub trait Texts {
    /// A file that is open.
    type File: Read;
    /// Why a file cannot be read.
    type Error;

    /// Returns the lengths of the files, in bytes.
    fn lengths(&self, side: Side) -> Vec<u64>;

    /// Opens a file by its place in that list.
    fn open(&self, side: Side, at: usize) -> Result<Self::File, Self::Error>;

    /// Returns the error for a file that could not be read to its end.
    fn unreadable(&self, side: Side, at: usize, error: io::Error) -> Self::Error;
}

/// What two texts have in common. Files are named by their places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// The share of the evaluation's different shingles that the other text has, in thousandths.
    pub share: u32,
    /// How many these are, which is about as many words.
    pub words: u64,
    /// The same of single files of the evaluation, of those of which the other text has [`SHARE`] or more.
    pub files: Vec<CommonFile>,
    /// The longest passage of the evaluation's text that the other one has.
    pub passage: Option<Passage>,
}

/// What the other text has of a file of the evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonFile {
    /// The file.
    pub evaluation: u32,
    /// The file that has most of it.
    pub calibration: u32,
    /// The share of its shingles that the other text has, in thousandths.
    pub share: u32,
    /// How many these are.
    pub words: u64,
}

/// A passage that both texts have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passage {
    /// The file of the evaluation.
    pub evaluation: u32,
    /// The file of the other text that has its first words.
    pub calibration: u32,
    /// Its length. A run of words that stands in it twice counts once.
    pub words: u64,
    /// Its first words, in lower case.
    pub begins: String,
}

/// Compares two texts.
///
/// # Errors
///
/// Those of reading the files.
pub fn compare<T: Texts>(texts: &T) -> Result<Common, T::Error> {
    let lengths = texts.lengths(Side::Evaluation);
    let mut held = Held::new(lengths.iter().sum());
    let read = |side: Side, at: usize, each: &mut dyn FnMut(&str) -> ControlFlow<()>| {
        let file = texts.open(side, at)?;
        words::for_each(file, each).map_err(|error| texts.unreadable(side, at, error))
    };
    for at in 0..lengths.len() {
        held.begin_file();
        read(Side::Evaluation, at, &mut |word| held.add(word))?;
    }
    let mut index = held.index();
    for at in 0..texts.lengths(Side::Calibration).len() {
        let mut shingles = Shingles::default();
        read(Side::Calibration, at, &mut |word| {
            if let Some(shingle) = shingles.next(word) {
                index.find(shingle, at);
            }
            ControlFlow::Continue(())
        })?;
    }
    let mut common = Common::default();
    let (mut own, mut shared) = (0, 0);
    for (at, file) in index.files().into_iter().enumerate() {
        own += file.own;
        let found: u64 = file.found.values().sum();
        shared += found;
        let share = thousandths(found, file.own);
        let most = file
            .found
            .iter()
            .max_by_key(|(at, found)| (**found, std::cmp::Reverse(**at)));
        if let Some((calibration, _)) = most.filter(|_| share >= SHARE) {
            common.files.push(CommonFile {
                evaluation: at as u32,
                calibration: *calibration,
                share,
                words: found * index.rate(),
            });
        }
    }
    common.share = thousandths(shared, own);
    common.words = shared * index.rate();
    if let Some(run) = index.longest_run() {
        let (mut at, mut begins) = (0, Vec::new());
        read(Side::Evaluation, run.file, &mut |word| {
            if at >= run.word {
                begins.push(word.to_owned());
            }
            at += 1;
            if begins.len() < QUOTED {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        common.passage = Some(Passage {
            evaluation: run.file as u32,
            calibration: run.calibration,
            words: run.words,
            begins: begins.join(" "),
        });
    }
    Ok(common)
}

fn thousandths(part: u64, whole: u64) -> u32 {
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u32
}

/// How much of a file was found.
#[derive(Debug, Default)]
struct FoundInFile {
    /// How many different shingles it has that no file before it has.
    own: u64,
    /// How many of them were found, by the file in which each was found first.
    found: BTreeMap<u32, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct InMemory {
        evaluation: Vec<String>,
        calibration: Vec<String>,
    }

    impl InMemory {
        fn of(&self, side: Side) -> &[String] {
            match side {
                Side::Evaluation => &self.evaluation,
                Side::Calibration => &self.calibration,
            }
        }
    }

    impl<'a> Texts for &'a InMemory {
        type File = &'a [u8];
        type Error = io::Error;

        fn lengths(&self, side: Side) -> Vec<u64> {
            self.of(side).iter().map(|text| text.len() as u64).collect()
        }

        fn open(&self, side: Side, at: usize) -> Result<Self::File, io::Error> {
            Ok(self.of(side)[at].as_bytes())
        }

        fn unreadable(&self, _side: Side, _at: usize, error: io::Error) -> io::Error {
            error
        }
    }

    /// Words that no two seeds have in common.
    fn text(seed: u64, words: usize) -> String {
        let words = (0..words as u64).map(|at| format!("w{seed}x{}", at.wrapping_mul(0x9e37_79b9) % 100_003));
        words.collect::<Vec<_>>().join(" ")
    }

    fn common(evaluation: &[String], calibration: &[String]) -> Common {
        let texts = InMemory {
            evaluation: evaluation.to_vec(),
            calibration: calibration.to_vec(),
        };
        compare(&&texts).unwrap()
    }

    #[test]
    fn texts_are_compared_without_regard_to_case_and_punctuation() {
        let one = text(1, 1000);
        let other = one.to_uppercase().replace(' ', ",\n");
        let found = common(std::slice::from_ref(&one), &[text(2, 500), other]);
        assert_eq!((found.share, found.words), (1000, 988));
        assert_eq!(found.files.len(), 1);
        assert_eq!(found.files[0].calibration, 1);
        let passage = found.passage.unwrap();
        assert_eq!((passage.words, passage.calibration), (1000, 1));
        assert!(one.starts_with(&passage.begins), "{}", passage.begins);
        assert_eq!(common(&[text(1, 1000)], &[text(2, 5000)]), Common::default());
        assert_eq!(common(&[String::new()], &[String::new()]), Common::default());
    }

    #[test]
    fn a_part_of_a_file_counts_for_that_file_and_for_all() {
        let part = text(3, 400);
        let evaluation = [text(1, 1000), format!("{part} {}", text(2, 100))];
        let found = common(&evaluation, &[format!("{} {part}", text(4, 9000))]);
        assert!((250..270).contains(&found.share), "{}", found.share);
        assert_eq!(found.files.len(), 1);
        assert_eq!(found.files[0].evaluation, 1);
        assert!(found.files[0].share > 780, "{}", found.files[0].share);
        assert_eq!(found.passage.unwrap().words, 400);
        // In another order, cut to pieces: no long passage, but the same share.
        let mut pieces: Vec<String> = part
            .split(' ')
            .collect::<Vec<_>>()
            .chunks(40)
            .map(|piece| piece.join(" "))
            .collect();
        pieces.reverse();
        let found = common(&evaluation, &[pieces.join(". ")]);
        assert!(found.files[0].share > 500, "{}", found.files[0].share);
        assert_eq!(found.passage.unwrap().words, 40);
    }

    #[test]
    fn headers_count_once_and_notices_not_at_all() {
        let notices: Vec<&str> = include_str!("notices.txt").split("\n\n").collect();
        let file = |seed: u64, header: &str| format!("/* Copyright {seed} {header} */ {}", text(seed, 200));
        for notice in notices {
            let evaluation: Vec<String> = (0..20).map(|seed| file(seed, notice)).collect();
            let calibration: Vec<String> = (100..120).map(|seed| file(seed, notice)).collect();
            assert_eq!(common(&evaluation, &calibration), Common::default(), "{notice}");
        }
        let header = text(1000, 60);
        let evaluation: Vec<String> = (0..20).map(|seed| file(seed, &header)).collect();
        let calibration: Vec<String> = (100..120).map(|seed| file(seed, &header)).collect();
        let found = common(&evaluation, &calibration);
        assert!(found.share < 20, "{}", found.share);
        assert!(found.passage.unwrap().words < words_of_chunk(512));
    }

    #[test]
    fn rows_of_equal_words_are_no_passages() {
        let table = "<td></td>".repeat(500);
        let list = "one, two, three, four, five, six, seven, eight; ".repeat(100);
        let of = |seed: u64| format!("{} {table} {} {list}", text(seed, 300), text(seed + 10, 300));
        let found = common(&[of(1)], &[of(2)]);
        assert!(found.share < 50, "{}", found.share);
        assert!(found.passage.unwrap().words < SHORTEST);
    }

    #[test]
    fn a_sample_of_a_long_text_has_the_same_share_and_passages() {
        let evaluation = text(1, 60_000);
        let half: Vec<&str> = evaluation.split(' ').take(30_000).collect();
        let texts = InMemory {
            calibration: vec![half.join(" ")],
            evaluation: vec![evaluation],
        };
        let mut held = Held::with_rate(16);
        held.begin_file();
        words::for_each(texts.evaluation[0].as_bytes(), |word| held.add(word)).unwrap();
        let mut index = held.index();
        let mut shingles = Shingles::default();
        words::for_each(texts.calibration[0].as_bytes(), |word| {
            if let Some(shingle) = shingles.next(word) {
                index.find(shingle, 0);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        let file = index.files().remove(0);
        let share = thousandths(file.found.values().sum(), file.own);
        assert!((470..530).contains(&share), "{share}");
        let run = index.longest_run().unwrap();
        assert!((28_500..31_500).contains(&run.words), "{}", run.words);
    }
}

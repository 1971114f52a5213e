//! Shingles of words, and an index of those of a text.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use super::FoundInFile;
use super::words;

/// The number of words in a shingle.
const LENGTH: usize = 13;
/// How many shingles are held, about.
const MOST: u64 = 1 << 22;
/// What the words of a text have at least, on average, with what separates them.
const BYTES_PER_WORD: u64 = 4;
/// Has no common divisor with 2^64.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of the last words of a text, which moves on word by word.
#[derive(Default)]
pub(super) struct Shingles {
    words: [u64; LENGTH],
    seen: usize,
    sum: u64,
}

impl Shingles {
    /// Adds a word; returns the hash of the shingle that it ends.
    pub(super) fn next(&mut self, word: &str) -> Option<u64> {
        const LEADING: u64 = {
            let (mut power, mut at) = (1_u64, 1);
            while at < LENGTH {
                power = power.wrapping_mul(BASE);
                at += 1;
            }
            power
        };
        let hash = blake3::hash(word.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        let new = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let oldest = std::mem::replace(&mut self.words[self.seen % LENGTH], new);
        self.sum = self.sum.wrapping_sub(oldest.wrapping_mul(LEADING));
        self.sum = self.sum.wrapping_mul(BASE).wrapping_add(new);
        self.seen += 1;
        (self.seen >= LENGTH).then(|| mixed(self.sum))
    }
}

/// Makes every bit depend on all others (the finalizer of SplitMix64).
fn mixed(sum: u64) -> u64 {
    let sum = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let sum = (sum ^ (sum >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    sum ^ (sum >> 31)
}

/// Returns the shingles of the notices of common licences.
fn notices() -> &'static BTreeSet<u64> {
    static NOTICES: OnceLock<BTreeSet<u64>> = OnceLock::new();
    NOTICES.get_or_init(|| {
        let mut found = BTreeSet::new();
        for notice in include_str!("notices.txt").split("\n\n") {
            let mut shingles = Shingles::default();
            // Reading memory does not fail.
            let _ = words::for_each(notice.as_bytes(), |word| {
                found.extend(shingles.next(word));
                ControlFlow::Continue(())
            });
        }
        found
    })
}

/// A shingle of the text that is held.
struct Sample {
    /// `None` for one of a notice.
    hash: Option<u64>,
    /// The place of its first word in its file.
    word: u64,
}

/// The shingles of a text, while it is read.
pub(super) struct Held {
    /// One of so many is held; a power of two.
    rate: u64,
    samples: Vec<Sample>,
    /// The number of samples before each file.
    files: Vec<usize>,
    shingles: Shingles,
}

impl Held {
    /// Holds all shingles of a text of so many bytes, or a sample that fits into memory.
    pub(super) fn new(bytes: u64) -> Self {
        Self::with_rate((bytes / BYTES_PER_WORD).div_ceil(MOST).next_power_of_two())
    }

    pub(super) fn with_rate(rate: u64) -> Self {
        Self {
            rate,
            samples: Vec::new(),
            files: Vec::new(),
            shingles: Shingles::default(),
        }
    }

    pub(super) fn begin_file(&mut self) {
        self.files.push(self.samples.len());
        self.shingles = Shingles::default();
    }

    pub(super) fn add(&mut self, word: &str) -> ControlFlow<()> {
        if let Some(hash) = self.shingles.next(word)
            && is_sampled(hash, self.rate)
        {
            self.samples.push(Sample {
                hash: (!notices().contains(&hash)).then_some(hash),
                word: (self.shingles.seen - LENGTH) as u64,
            });
        }
        ControlFlow::Continue(())
    }

    pub(super) fn index(self) -> Index {
        let mut hashes: Vec<u64> = self.samples.iter().filter_map(|sample| sample.hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        // Eight bits for each: seven of eight others are dismissed by one look.
        let bits = (hashes.len() as u64 * 8).next_power_of_two().max(64);
        let mut filter = vec![0; (bits / 64) as usize];
        for hash in &hashes {
            let bit = bit_of(*hash, bits);
            filter[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        Index {
            found: vec![0; hashes.len()],
            bits,
            filter,
            hashes,
            held: self,
        }
    }
}

/// Chosen by bits that the filter does not use.
fn is_sampled(hash: u64, rate: u64) -> bool {
    hash.reverse_bits() & (rate - 1) == 0
}

fn bit_of(hash: u64, bits: u64) -> u64 {
    hash & (bits - 1)
}

/// The shingles of a text, to be found in others.
pub(super) struct Index {
    held: Held,
    /// Sorted.
    hashes: Vec<u64>,
    /// For each of them 1 more than the first file in which it was found; 0 for none.
    found: Vec<u32>,
    bits: u64,
    filter: Vec<u64>,
}

/// Consecutive shingles that were found.
pub(super) struct Run {
    /// The file of the text.
    pub(super) file: usize,
    /// The place of its first word.
    pub(super) word: u64,
    /// The number of its words; fewer if it repeats itself.
    pub(super) words: u64,
    /// Where its first shingle was found.
    pub(super) calibration: u32,
}

impl Index {
    /// Of so many shingles one is held.
    pub(super) fn rate(&self) -> u64 {
        self.held.rate
    }

    /// Notes that a shingle is in a file.
    pub(super) fn find(&mut self, hash: u64, file: usize) {
        let bit = bit_of(hash, self.bits);
        if self.filter[(bit / 64) as usize] & (1 << (bit % 64)) == 0 {
            return;
        }
        if let Ok(at) = self.hashes.binary_search(&hash)
            && self.found[at] == 0
        {
            self.found[at] = file as u32 + 1;
        }
    }

    fn place(&self, sample: &Sample) -> Option<usize> {
        self.hashes.binary_search(&sample.hash?).ok()
    }

    fn samples_of(&self, file: usize) -> &[Sample] {
        let start = self.held.files[file];
        let end = self.held.files.get(file + 1).copied();
        &self.held.samples[start..end.unwrap_or(self.held.samples.len())]
    }

    /// Returns what was found of each file. A shingle counts for the first file that has it.
    pub(super) fn files(&self) -> Vec<FoundInFile> {
        let mut counted = vec![false; self.hashes.len()];
        let files = 0..self.held.files.len();
        let count = files.map(|file| {
            let mut of_file = FoundInFile::default();
            for at in self.samples_of(file).iter().filter_map(|sample| self.place(sample)) {
                if std::mem::replace(&mut counted[at], true) {
                    continue;
                }
                of_file.own += 1;
                if let Some(calibration) = self.found[at].checked_sub(1) {
                    *of_file.found.entry(calibration).or_default() += 1;
                }
            }
            of_file
        });
        count.collect()
    }

    /// Returns the longest run of shingles that were found, wherever each was. A shingle counts once in a run, so a row of equal
    /// words is short. Notices neither count nor end a run.
    pub(super) fn longest_run(&self) -> Option<Run> {
        let mut longest: Option<Run> = None;
        // The last run that each shingle was counted in.
        let mut counted_in = vec![0_u64; self.hashes.len()];
        let mut runs = 0;
        for file in 0..self.held.files.len() {
            let mut run: Option<Run> = None;
            for sample in self.samples_of(file).iter().filter(|sample| sample.hash.is_some()) {
                let place = self.place(sample);
                let found = place.and_then(|at| Some((at, self.found[at].checked_sub(1)?)));
                let Some((at, calibration)) = found else {
                    run = None;
                    continue;
                };
                let run = run.get_or_insert_with(|| {
                    runs += 1;
                    Run {
                        file,
                        word: sample.word,
                        words: LENGTH as u64 - 1,
                        calibration,
                    }
                });
                if std::mem::replace(&mut counted_in[at], runs) != runs {
                    run.words += self.held.rate;
                }
                if longest.as_ref().is_none_or(|longest| run.words > longest.words) {
                    longest = Some(Run { ..*run });
                }
            }
        }
        longest
    }
}

//! Texts as words.

use std::io;
use std::io::Read;
use std::ops::ControlFlow;

/// Longer words, as of encoded data, are cut.
const MAX_WORD: usize = 256;
/// How much of a text is in memory at once.
const PIECE: usize = 1 << 16;

/// Calls `each` with the words of a text, in lower case, until it breaks. A word is a run of letters and digits; an ideograph or kana
/// is a word of its own. So neither punctuation, white space, markup nor the signs of comments matter. Bytes that are not
/// UTF-8 separate words.
pub(super) fn for_each(mut text: impl Read, mut each: impl FnMut(&str) -> ControlFlow<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut word = String::new();
    let mut carried = 0;
    loop {
        let read = match text.read(&mut piece[carried..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let filled = carried + read;
        let mut at = 0;
        carried = 0;
        while at < filled {
            let (valid, skipped) = match std::str::from_utf8(&piece[at..filled]) {
                Ok(valid) => (valid, 0),
                Err(error) => {
                    let end = at + error.valid_up_to();
                    let invalid = error.error_len();
                    if invalid.is_none() && read > 0 {
                        // A character may continue in the next piece.
                        carried = filled - end;
                    }
                    let valid = std::str::from_utf8(&piece[at..end]).unwrap_or_default();
                    (valid, invalid.unwrap_or(filled - end))
                }
            };
            let taken = valid.len() + skipped;
            for c in valid.chars() {
                if c.is_ascii_alphanumeric() {
                    word.push(c.to_ascii_lowercase());
                } else if !c.is_alphanumeric() {
                    if flush(&mut word, &mut each).is_break() {
                        return Ok(());
                    }
                    continue;
                } else if stands_alone(c) {
                    let mut alone = c.to_string();
                    if flush(&mut word, &mut each).is_break() || flush(&mut alone, &mut each).is_break() {
                        return Ok(());
                    }
                    continue;
                } else {
                    word.extend(c.to_lowercase());
                }
                if word.len() >= MAX_WORD && flush(&mut word, &mut each).is_break() {
                    return Ok(());
                }
            }
            at += taken;
            if skipped > 0 && carried == 0 && flush(&mut word, &mut each).is_break() {
                return Ok(());
            }
        }
        if read == 0 {
            let _ = flush(&mut word, &mut each);
            return Ok(());
        }
        piece.copy_within(filled - carried..filled, 0);
    }
}

fn flush(word: &mut String, each: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
    if word.is_empty() {
        return ControlFlow::Continue(());
    }
    let flow = each(word);
    word.clear();
    flow
}

/// Says whether a letter is of a script that writes no spaces between words, and has many letters: ideographs and kana.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x2e80..=0x30ff | 0x31f0..=0x31ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (first, rest) = self.0.split_at(self.0.len().min(1));
            buffer[..first.len()].copy_from_slice(first);
            self.0 = rest;
            Ok(first.len())
        }
    }

    fn words(text: &[u8]) -> Vec<String> {
        let mut found = [Vec::new(), Vec::new()];
        let add = |list: &mut Vec<String>, word: &str| {
            list.push(word.to_owned());
            ControlFlow::Continue(())
        };
        let [whole, slow] = &mut found;
        for_each(text, |word| add(whole, word)).unwrap();
        for_each(Slow(text), |word| add(slow, word)).unwrap();
        assert_eq!(whole, slow);
        found[0].clone()
    }

    #[test]
    fn a_text_is_its_letters_and_digits() {
        assert_eq!(
            words("// It's  the *same*,\r\n// ÄRGER_42!".as_bytes()),
            ["it", "s", "the", "same", "ärger", "42"]
        );
        assert_eq!(words("漢字とkana".as_bytes()), ["漢", "字", "と", "kana"]);
        assert_eq!(words(b"one\xfftwo \xe4\xb8"), ["one", "two"]);
        assert_eq!(words(b""), [""; 0]);
        assert_eq!(words(&[b'a'; 600]).len(), 3);
    }
}

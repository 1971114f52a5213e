//! The texts of a corpus, checked. The texts themselves stay where they are.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use crate::action::Corpus;
use crate::digest::BlobDigest;
use crate::fs;
use crate::observer::Unit;
use crate::vocab::Chunking;

/// The version of [`Document`].
const SCHEMA: u32 = 1;

/// What later steps depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    /// The version of this form.
    pub schema: u32,
    /// How the texts are cut.
    pub chunking: Chunking,
    /// Whether special tokens in the texts are read as such.
    pub parse_special: bool,
    /// The texts, in order.
    pub texts: Vec<BlobDigest>,
}

impl Work for Corpus {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        let located = context.located();
        let files = self.texts.iter().map(|digest| located.file(digest).cloned());
        files.collect()
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let files = self.reads(context)?;
        let total: u64 = files.iter().map(|file| file.digest.len).sum();
        context.expect(Unit::BytesHashed, total);
        for file in &files {
            context.check_cancel()?;
            check_text(file.open()?, &file.path)?;
            context.advance(Unit::BytesHashed, file.digest.len);
        }
        if total == 0 {
            return Err(StepError::input("all texts of the corpus are empty"));
        }
        let document = Document {
            schema: SCHEMA,
            chunking: self.chunking,
            parse_special: self.parse_special,
            texts: self.texts.clone(),
        };
        let mut made = ActionOutputs::default();
        made.output(Self::CORPUS, context.store().put(&encode(&document)?)?);
        made.fact(Self::TEXTS, files.len());
        made.fact(Self::BYTES, total);
        Ok(made)
    }
}

/// Reads a file to its end, and fails if it is not UTF-8 text.
///
/// # Errors
///
/// [`StepError::Input`], which names the first byte that is not part of a text; errors of reading.
pub fn check_text(mut reader: fs::File, path: &Path) -> Result<(), StepError> {
    let mut piece = vec![0; 1 << 20];
    let mut carried = 0;
    let mut offset = 0u64;
    loop {
        let read = reader
            .read(&mut piece[carried..])
            .map_err(fs::PathError::on(path, "read"))?;
        let filled = carried + read;
        let valid = match std::str::from_utf8(&piece[..filled]) {
            Ok(_) => filled,
            // A character may continue in the next piece.
            Err(error) if error.error_len().is_none() && read > 0 => error.valid_up_to(),
            Err(error) => {
                let at = error.valid_up_to();
                return Err(not_text(path, &piece[..filled], offset + at as u64, piece[at]));
            }
        };
        if read == 0 {
            return Ok(());
        }
        piece.copy_within(valid..filled, 0);
        carried = filled - valid;
        offset += valid as u64;
    }
}

/// Says that a file is not UTF-8 text. `piece` is the part of it with the byte that is not.
fn not_text(path: &Path, piece: &[u8], at: u64, byte: u8) -> StepError {
    let shown = path.display();
    let what = format!("`{shown}` is not UTF-8: byte {at} is 0x{byte:02x}");
    // No encoding of text has bytes that are 0, apart from UTF-16 and UTF-32.
    let is_utf16 = piece.starts_with(&[0xff, 0xfe]) || piece.starts_with(&[0xfe, 0xff]);
    let hint = if is_utf16 {
        format!("convert it: `iconv -f UTF-16 -t UTF-8 {shown} > {shown}.utf8`")
    } else if piece.contains(&0) {
        "it is not a text file; a corpus consists of plain text".to_owned()
    } else {
        format!("convert it, for example with `iconv -f ENCODING -t UTF-8 {shown} > {shown}.utf8`")
    };
    StepError::input_hint(what, hint)
}

//! An output's bytes against what its manifest says of them: one pass, a thread that reads ahead, one for SHA-256.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use sha2::Digest as _;
use sha2::Sha256;

use crate::container;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::PathError;
use crate::gguf;
use crate::verify::Part;
use crate::verify::Problem;
use crate::verify::Verified;
use crate::verify::document::Facts;

/// How much is read at once.
const PIECE: usize = 4 << 20;

/// A stretch of the file.
struct Segment<'f> {
    start: u64,
    end: u64,
    what: Stretch<'f>,
}

enum Stretch<'f> {
    Header(&'f BlobDigest),
    Tensor(&'f str, &'f BlobDigest),
    Padding,
}

/// Holds the file against the facts.
pub(super) fn check(path: &Path, facts: &Facts, progress: &(dyn Fn(u64) + Sync), verified: &mut Verified) {
    match read(path, facts, progress) {
        Ok(found) => {
            verified.bytes = found.bytes;
            verified.tensors = found.tensors;
            verified.problems.extend(found.problems);
        }
        Err(error) => {
            let what = if error.is_not_found() {
                format!("there is no `{}`", path.display())
            } else {
                error.to_string()
            };
            verified.problems.push(Problem::new(Part::Output, "", what));
            return;
        }
    }
    header(path, facts, &mut verified.problems);
}

/// Holds the header's own table of tensors against the manifest's.
fn header(path: &Path, facts: &Facts, problems: &mut Vec<Problem>) {
    let model = match container::open(path) {
        Ok(model) => model,
        Err(error) => return problems.push(Problem::new(Part::Output, "header", error.to_string())),
    };
    let mut say = |place: String, what: String| problems.push(Problem::new(Part::Output, place, what));
    let (found, expected) = (model.tensors().len(), facts.tensors.len());
    if found != expected {
        say(
            "header".to_owned(),
            format!("it names {found} tensors, and the manifest {expected}"),
        );
    }
    for tensor in &facts.tensors {
        let place = format!("tensor {}", tensor.name);
        let Some(there) = model.tensor(&tensor.name) else {
            say(place, "it is not in the header".to_owned());
            continue;
        };
        if there.info.ty.name() != tensor.ty {
            say(
                place.clone(),
                format!("the header says {}, and the manifest {}", there.info.ty, tensor.ty),
            );
        }
        if gguf::without_trailing_ones(&there.info.dims) != gguf::without_trailing_ones(&tensor.dims) {
            say(
                place.clone(),
                format!(
                    "the header says {:?}, and the manifest {:?}",
                    there.info.dims, tensor.dims
                ),
            );
        }
        if there.start != tensor.start {
            say(
                place,
                format!(
                    "the header puts it at byte {}, and the manifest at {}",
                    there.start, tensor.start
                ),
            );
        }
    }
}

struct Found {
    bytes: u64,
    tensors: usize,
    problems: Vec<Problem>,
}

/// Divides the file into stretches. Tensors with an impossible place in the manifest are reported and left out.
fn segments<'f>(facts: &'f Facts, size: u64, problems: &mut Vec<Problem>) -> Vec<Segment<'f>> {
    let mut wanted: Vec<(u64, u64, Stretch<'f>)> = Vec::new();
    if let Some(header) = &facts.header {
        wanted.push((0, header.len, Stretch::Header(header)));
    }
    for tensor in &facts.tensors {
        if let Some(bytes) = &tensor.bytes {
            wanted.push((tensor.start, bytes.len, Stretch::Tensor(&tensor.name, bytes)));
        }
    }
    wanted.sort_by_key(|(start, len, _)| (*start, *len));
    let mut segments = Vec::with_capacity(2 * wanted.len() + 1);
    let mut at = 0;
    for (start, len, what) in wanted {
        let place = match &what {
            Stretch::Tensor(name, _) => format!("tensor {name}"),
            _ => "header".to_owned(),
        };
        let Some(end) = start.checked_add(len).filter(|end| *end <= size) else {
            let what = format!("{len} bytes from byte {start} on, but the file ends at {size}");
            problems.push(Problem::new(Part::Output, place, what));
            continue;
        };
        if start < at {
            let what = format!("it would begin at byte {start}, inside the part before it");
            problems.push(Problem::new(Part::Manifest, place, what));
            continue;
        }
        if at < start {
            segments.push(Segment {
                start: at,
                end: start,
                what: Stretch::Padding,
            });
        }
        segments.push(Segment { start, end, what });
        at = end;
    }
    if at < size {
        segments.push(Segment {
            start: at,
            end: size,
            what: Stretch::Padding,
        });
    }
    segments
}

fn read(path: &Path, facts: &Facts, progress: &(dyn Fn(u64) + Sync)) -> Result<Found, PathError> {
    let file = fs::open(path)?;
    let before = fs::Stamp::of_file(&file, path)?;
    let size = before.size;
    let mut problems = Vec::new();
    let segments = segments(facts, size, &mut problems);
    let mut walk = Walk {
        segments: &segments,
        at: 0,
        hasher: blake3::Hasher::new(),
        stray: None,
        tensors: 0,
        problems,
    };
    let mut whole = blake3::Hasher::new();
    let sha256 = if rayon::current_num_threads() == 1 {
        let (mut sha256, mut piece, mut offset) = (Sha256::new(), Vec::new(), 0);
        while offset < size {
            piece.resize(PIECE.min(usize::try_from(size - offset).unwrap_or(PIECE)), 0);
            fs::read_exact_at(&file, &mut piece, offset).map_err(PathError::on(path, "read"))?;
            sha256.update(&piece);
            whole.update_rayon(&piece);
            walk.piece(offset, &piece);
            offset += piece.len() as u64;
            progress(piece.len() as u64);
        }
        Hash::from_bytes(sha256.finalize().into()).to_string()
    } else {
        std::thread::scope(|scope| -> Result<String, PathError> {
            let (sender, pieces) = mpsc::sync_channel::<Result<Vec<u8>, std::io::Error>>(2);
            let reader = &file;
            scope.spawn(move || {
                let mut offset = 0;
                while offset < size {
                    let len = PIECE.min(usize::try_from(size - offset).unwrap_or(PIECE));
                    let mut piece = vec![0; len];
                    let read = fs::read_exact_at(reader, &mut piece, offset).map(|()| piece);
                    let failed = read.is_err();
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                    offset += len as u64;
                }
            });
            let (to_sha256, blocks) = mpsc::sync_channel::<Arc<Vec<u8>>>(2);
            let hashing = scope.spawn(move || {
                let mut hasher = Sha256::new();
                for block in blocks {
                    hasher.update(&*block);
                }
                hasher.finalize()
            });
            let mut offset = 0;
            for piece in pieces {
                let piece = Arc::new(piece.map_err(PathError::on(path, "read"))?);
                // It waits for us, not we for it to end.
                to_sha256.send(Arc::clone(&piece)).ok();
                whole.update_rayon(&piece);
                walk.piece(offset, &piece);
                offset += piece.len() as u64;
                progress(piece.len() as u64);
            }
            drop(to_sha256);
            let sum = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(Hash::from_bytes(sum.into()).to_string())
        })?
    };
    if fs::Stamp::of_file(&file, path)? != before {
        let what = "it changed while it was read, so nothing can be said about it";
        walk.problems.push(Problem::new(Part::Output, "", what));
    }
    let mut problems = walk.problems;
    let hash = Hash::from_bytes(*whole.finalize().as_bytes());
    let mut say = |what: String| problems.push(Problem::new(Part::Output, "", what));
    if let Some(expected) = &facts.file {
        if expected.len != size {
            say(format!("it has {size} bytes, and the manifest says {}", expected.len));
        }
        if expected.hash != hash {
            say(format!("its blake3 is {hash}, and the manifest says {}", expected.hash));
        }
    }
    if let Some(expected) = facts.sha256.as_ref().filter(|expected| **expected != sha256) {
        say(format!("its sha256 is {sha256}, and the manifest says {expected}"));
    }
    Ok(Found {
        bytes: size,
        tensors: walk.tensors,
        problems,
    })
}

/// Goes through the stretches as the pieces come.
struct Walk<'s, 'f> {
    segments: &'s [Segment<'f>],
    /// The stretch that is not over yet.
    at: usize,
    hasher: blake3::Hasher,
    /// The first byte of this padding that is not zero.
    stray: Option<u64>,
    tensors: usize,
    problems: Vec<Problem>,
}

impl Walk<'_, '_> {
    fn piece(&mut self, offset: u64, piece: &[u8]) {
        let end = offset + piece.len() as u64;
        while let Some(segment) = self.segments.get(self.at) {
            let from = segment.start.max(offset);
            let to = segment.end.min(end);
            if from < to {
                let bytes = &piece[(from - offset) as usize..(to - offset) as usize];
                if let Stretch::Padding = segment.what {
                    let stray = bytes.iter().position(|byte| *byte != 0);
                    self.stray = self.stray.or(stray.map(|stray| from + stray as u64));
                } else {
                    self.hasher.update_rayon(bytes);
                }
            }
            if segment.end > end {
                return;
            }
            self.close();
        }
    }

    fn close(&mut self) {
        let segment = &self.segments[self.at];
        self.at += 1;
        let found = Hash::from_bytes(*self.hasher.finalize().as_bytes());
        self.hasher.reset();
        let stray = self.stray.take();
        let mut say = |place: String, what: String| self.problems.push(Problem::new(Part::Output, place, what));
        match segment.what {
            Stretch::Header(expected) if expected.hash != found => say(
                "header".to_owned(),
                format!(
                    "bytes 0 to {} have blake3 {found}, and the manifest says {}",
                    segment.end, expected.hash
                ),
            ),
            Stretch::Tensor(name, expected) => {
                self.tensors += 1;
                if expected.hash != found {
                    say(
                        format!("tensor {name}"),
                        format!(
                            "bytes {} to {} have blake3 {found}, and the manifest says {}",
                            segment.start, segment.end, expected.hash
                        ),
                    );
                }
            }
            Stretch::Padding => {
                if let Some(stray) = stray {
                    let what = format!("byte {stray} is padding but not zero");
                    say("padding".to_owned(), what);
                }
            }
            Stretch::Header(_) => {}
        }
    }
}

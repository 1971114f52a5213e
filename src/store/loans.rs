//! Blobs that are kept outside the store: a finished output holds its tensors' bytes, so the store need not hold them a
//! second time. A *book* (`borrowed-v1/<name>`) says of one output which blobs it lends and where they begin. A loan counts as
//! there while the output has the very stamp that it had (looked at, not read); its bytes are verified whenever they are
//! read. `docs/design-notes.md`, "Nothing is stored twice", says why no order of events loses or falsifies anything.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::File;
use crate::fs::FileKind;
use crate::fs::FileLock;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::aside;
use crate::store::layout;
use crate::store::sealed;

const KIND: &str = "loans";
const VERSION: u64 = 1;
const SCHEMA: u32 = 1;

/// A blob within a file outside the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Loan {
    /// The blob.
    pub bytes: BlobDigest,
    /// Where it begins in the file, in bytes.
    pub start: u64,
}

/// What one file lends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    schema: u32,
    /// The file, absolute.
    pub(super) path: String,
    /// All of the file.
    pub(super) file: BlobDigest,
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i64,
    /// Nothing while the file has not got its name yet, which changes this.
    ctime_ns: Option<i64>,
    /// What it lends.
    pub(super) loans: Vec<Loan>,
}

impl Book {
    /// Writes down what a file lends. A path that is no UTF-8 cannot be written down: `None`.
    pub(super) fn of(path: &Path, stamp: &Stamp, named: bool, file: &BlobDigest, loans: &[Loan]) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let mut loans = loans.to_vec();
        // A file may hold the same bytes twice.
        loans.sort_unstable();
        loans.dedup_by_key(|loan| loan.bytes);
        Some(Self {
            schema: SCHEMA,
            path: path.to_str()?.to_owned(),
            file: *file,
            dev: stamp.dev,
            ino: stamp.ino,
            size: stamp.size,
            mtime_ns: stamp.mtime_ns,
            ctime_ns: named.then_some(stamp.ctime_ns),
            loans,
        })
    }

    /// Returns the name under which it is kept: another one for each file at each path, so that looking whether it is there
    /// is enough to know that it is this one.
    pub(super) fn name(&self) -> String {
        let ctime = self.ctime_ns.map_or_else(|| "-".to_owned(), |ctime| ctime.to_string());
        let (dev, ino, size, mtime) = (self.dev, self.ino, self.size, self.mtime_ns);
        let stamp = Hash::of(format!("{dev} {ino} {size} {mtime} {ctime} {}", self.file).as_bytes());
        format!("{}-{}", Self::prefix(&self.path), &stamp.to_string()[..32])
    }

    /// Returns how the names of all books of one path begin.
    fn prefix(path: &str) -> String {
        Hash::of(path.as_bytes()).to_string()[..32].to_owned()
    }

    /// Returns whether the file is the one that was written down, as far as can be told without reading it.
    pub(super) fn holds(&self) -> bool {
        // What cannot be looked at holds nothing for now.
        let found = fs::facts(Path::new(&self.path)).ok().flatten();
        found.is_some_and(|found| found.kind == FileKind::Plain && self.is_of(&found.stamp))
    }

    pub(super) fn is_of(&self, stamp: &Stamp) -> bool {
        (stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns) == (self.dev, self.ino, self.size, self.mtime_ns)
            && self.ctime_ns.is_none_or(|ctime| ctime == stamp.ctime_ns)
    }

    /// Returns whether it can be true at all: one that came from elsewhere may say anything.
    fn is_sound(&self) -> bool {
        let within = |loan: &Loan| {
            let end = loan.start.checked_add(loan.bytes.len);
            end.is_some_and(|end| end <= self.size)
        };
        self.schema == SCHEMA && Path::new(&self.path).is_absolute() && self.loans.iter().all(within)
    }

    /// Returns whether another book is of the same file, before or after it got its name.
    fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.ino, self.file) == (other.dev, other.ino, other.file)
    }
}

/// The books that this process has read.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The stamp of the directory when it was listed, if it proves that nothing was missed.
    seen: Option<Stamp>,
    books: BTreeMap<String, (Stamp, Arc<Book>)>,
    lenders: HashMap<BlobDigest, Vec<(Arc<Book>, u64)>>,
}

/// A blob in a file outside the store, open.
#[derive(Debug)]
pub(super) struct Lent {
    file: File,
    at: u64,
    left: u64,
    book: Arc<Book>,
}

impl Lent {
    pub(super) fn path(&self) -> &Path {
        Path::new(&self.book.path)
    }
}

impl Read for Lent {
    /// A file that ends too early ends the blob: its digest shows it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = fs::read_at(&self.file, &mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The right to replace files that lend, while it is held.
#[derive(Debug)]
pub struct Reclaimed {
    _lock: FileLock,
}

impl Store {
    fn books_dir(&self) -> PathBuf {
        self.root().join(layout::BORROWED)
    }

    /// Returns the files that are written down as lenders of a blob, and where it begins in each.
    fn lenders(&self, digest: &BlobDigest) -> Result<Vec<(Arc<Book>, u64)>, StoreError> {
        let directory = self.books_dir();
        let stamp = Stamp::of(&directory)?;
        {
            let known = self.inner.loans.read().unwrap_or_else(PoisonError::into_inner);
            if known.seen == Some(stamp) {
                return Ok(known.lenders.get(digest).cloned().unwrap_or_default());
            }
        }
        let mut known = self.inner.loans.write().unwrap_or_else(PoisonError::into_inner);
        let started = fs::Moment::now();
        let mut books = BTreeMap::new();
        let mut changed = false;
        for name in self.book_names()? {
            let Some(facts) = fs::facts(&directory.join(&name))? else {
                continue;
            };
            let kept = known.books.remove(&name).filter(|(stamp, _)| *stamp == facts.stamp);
            let read = if kept.is_some() {
                kept
            } else {
                changed = true;
                self.book(&name)?.map(|(stamp, book)| (stamp, Arc::new(book)))
            };
            books.extend(read.map(|read| (name, read)));
        }
        changed |= !known.books.is_empty();
        known.books = books;
        if changed || known.seen.is_none() {
            let mut lenders: HashMap<BlobDigest, Vec<(Arc<Book>, u64)>> = HashMap::new();
            for (_, book) in known.books.values() {
                for loan in &book.loans {
                    lenders
                        .entry(loan.bytes)
                        .or_default()
                        .push((Arc::clone(book), loan.start));
                }
            }
            known.lenders = lenders;
        }
        // A directory that changed within the clock's grain may change again and keep its stamp.
        known.seen = stamp.is_settled(&started).then_some(stamp);
        Ok(known.lenders.get(digest).cloned().unwrap_or_default())
    }

    /// Returns the names of all books.
    pub(super) fn book_names(&self) -> Result<Vec<String>, StoreError> {
        let names = fs::list(&self.books_dir())?.into_iter();
        Ok(names
            .filter(|entry| !entry.is_dir)
            .filter_map(|entry| entry.name.into_string().ok())
            .collect())
    }

    /// Reads a book; `None` if it is gone, or damaged, or no file.
    pub(super) fn book(&self, name: &str) -> Result<Option<(Stamp, Book)>, StoreError> {
        let path = self.books_dir().join(name);
        let (bytes, stamp) = match aside::read_own(&path, sealed::CAP) {
            Ok(read) => read,
            Err(error) if error.is_not_found() || error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge || error.is_permission() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let document = sealed::unseal(KIND, VERSION, name, &bytes);
        let book = document
            .ok()
            .and_then(|document| serde_json::from_str::<Book>(document).ok());
        Ok(book
            .filter(|book| book.name() == name && book.is_sound())
            .map(|book| (stamp, book)))
    }

    fn write_book(&self, book: &Book) -> Result<(), StoreError> {
        let name = book.name();
        let temp = self.sealed_temp(KIND, VERSION, &name, book)?;
        if let Some(start) = self.own_lease() {
            temp.set_modified(Self::mark_time(start))?;
        }
        self.publish(temp, &self.books_dir().join(&name), Durability::Synced)
    }

    pub(super) fn remove_book(&self, name: &str) -> Result<(), StoreError> {
        self.discard(&self.books_dir().join(name))?;
        Ok(())
    }

    /// Makes the names of all books durable.
    pub(super) fn sync_books(&self) -> Result<(), StoreError> {
        Ok(fs::sync_dir(&self.books_dir())?)
    }

    /// Returns whether a file outside the store holds the blob, as far as can be told without reading.
    pub(super) fn is_lent(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        Ok(self.lenders(digest)?.iter().any(|(book, _)| book.holds()))
    }

    /// Returns a file outside the store that holds the blob, as far as can be told without reading.
    pub(super) fn lender(&self, digest: &BlobDigest) -> Result<Option<PathBuf>, StoreError> {
        let lenders = self.lenders(digest)?;
        let holding = lenders.iter().find(|(book, _)| book.holds());
        Ok(holding.map(|(book, _)| PathBuf::from(&book.path)))
    }

    /// Opens a blob in a file outside the store, if one holds it.
    pub(super) fn open_lent(&self, digest: &BlobDigest) -> Result<Option<Lent>, StoreError> {
        for (book, start) in self.lenders(digest)? {
            let Ok((file, stamp)) = fs::open_plain(Path::new(&book.path)) else {
                continue;
            };
            if book.is_of(&stamp) {
                return Ok(Some(Lent {
                    file,
                    at: start,
                    left: digest.len,
                    book,
                }));
            }
        }
        Ok(None)
    }

    /// Strikes a loan out whose bytes were found to be others, and forgets what is known of the file: the next build reads
    /// it. Other files that are said to hold the blob are read at once, so that whoever asks again is not deceived again.
    pub(super) fn strike(&self, lent: &Lent, digest: &BlobDigest) -> Result<StoreError, StoreError> {
        let path = lent.path().to_owned();
        let stamp = Stamp::of_file(&lent.file, &path)?;
        self.strike_out(&lent.book.name(), &[*digest], &stamp)?;
        for (book, start) in self.lenders(digest)? {
            let Ok((file, stamp)) = fs::open_plain(Path::new(&book.path)) else {
                continue;
            };
            let mut other = Lent {
                file,
                at: start,
                left: digest.len,
                book: Arc::clone(&book),
            };
            if book.is_of(&stamp) && BlobDigest::of_reader(&mut other).ok() != Some(*digest) {
                self.strike_out(&book.name(), &[*digest], &stamp)?;
            }
        }
        Ok(StoreError::NotLent { digest: *digest, path })
    }

    /// Strikes loans out of a book, and forgets what is known of the file that had this stamp.
    pub(super) fn strike_out(&self, name: &str, wrong: &[BlobDigest], stamp: &Stamp) -> Result<(), StoreError> {
        let _lock = self.replacing(&Hash::of(name.as_bytes()))?;
        if let Some((_, mut book)) = self.book(name)? {
            book.loans.retain(|loan| !wrong.contains(&loan.bytes));
            self.write_book(&book)?;
        }
        // Notes of builds that found everything done rest on the stamp, too.
        for note in self.plain_files(&format!("{}/fresh", layout::RUNS))? {
            self.discard(&note.path)?;
        }
        self.forget(stamp)
    }

    /// Returns whether it is written down what this very file lends.
    pub fn is_lender(&self, path: &Path, stamp: &Stamp, file: &BlobDigest) -> Result<bool, StoreError> {
        // A path that cannot be written down lends nothing, ever.
        let Some(book) = Book::of(path, stamp, true, file, &[]) else {
            return Ok(true);
        };
        let name = book.name();
        let read = fs::read_plain(&self.books_dir().join(&name), sealed::CAP);
        Ok(read.is_ok_and(|(bytes, _)| sealed::unseal(KIND, VERSION, &name, &bytes).is_ok()))
    }

    /// Takes back into the store what only the file at `path` holds, but for `kept`, before the file is replaced. The
    /// caller has the place alone ([`Store::lock_output`]), and replaces the file while it holds what this returns: of two
    /// places that hold the same blob, both could otherwise be replaced since the other one has it. What there is no room
    /// for is left: it is made again when it is needed.
    pub fn reclaim(&self, path: &Path, kept: &[Loan]) -> Result<Reclaimed, StoreError> {
        // Most of it without the lock: copying takes its time.
        self.reclaim_once(path, kept)?;
        let lock = FileLock::exclusive(&self.root().join(layout::LOCKS).join("loans"))?;
        self.reclaim_once(path, kept)?;
        Ok(Reclaimed { _lock: lock })
    }

    fn reclaim_once(&self, path: &Path, kept: &[Loan]) -> Result<(), StoreError> {
        let Some((prefix, path)) = absolute(path) else {
            return Ok(());
        };
        let mut kept: Vec<BlobDigest> = kept.iter().map(|loan| loan.bytes).collect();
        kept.sort_unstable();
        for name in self.book_names()?.iter().filter(|name| name.starts_with(&prefix)) {
            let Some((_, book)) = self.book(name)?.filter(|(_, book)| book.holds()) else {
                continue;
            };
            for loan in &book.loans {
                let digest = &loan.bytes;
                if kept.binary_search(digest).is_ok() || self.keeps(digest)? {
                    continue;
                }
                let elsewhere = self.lenders(digest)?;
                if elsewhere.iter().any(|(other, _)| other.path != path && other.holds()) {
                    continue;
                }
                if self.free_space()? < digest.len {
                    return Ok(());
                }
                if let Some(lent) = self.open_lent(digest)? {
                    self.take_in(lent, digest)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the store holds a blob itself, and marks it, so that no collector takes it for a copy of what a file
    /// lends.
    fn keeps(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        let start = self.own_lease();
        let _using = start.map(|_| self.using()).transpose()?;
        match (self.own_blob(digest)?, start) {
            (Some(stamp), Some(start)) if stamp.mtime_ns < start => {
                Ok(fs::set_modified(&self.blob_path(digest), Self::mark_time(start))?)
            }
            (found, _) => Ok(found.is_some()),
        }
    }

    /// Writes down, durably, what a file is about to lend that is complete but has not got its name `path` yet. So nothing
    /// is lost if the process is killed between the rename and [`Store::lend`].
    pub fn promise_loans(
        &self,
        path: &Path,
        unnamed: &Stamp,
        file: &BlobDigest,
        loans: &[Loan],
    ) -> Result<(), StoreError> {
        match Book::of(path, unnamed, false, file, loans).filter(|_| self.is_lending() && !loans.is_empty()) {
            Some(book) => self.write_book(&book),
            None => Ok(()),
        }
    }

    /// Writes down what a finished file lends, durably, and then removes those blobs from the store. The caller has the place
    /// alone ([`Store::lock_output`]), and knows that the file with that stamp has that digest. Returns how many bytes the
    /// store became smaller by.
    pub fn lend(&self, path: &Path, stamp: &Stamp, file: &BlobDigest, loans: &[Loan]) -> Result<u64, StoreError> {
        let book = Book::of(path, stamp, true, file, loans).filter(|book| self.is_lending() && book.holds());
        let Some(book) = book.filter(|book| !book.loans.is_empty()) else {
            return Ok(0);
        };
        self.write_book(&book)?;
        let mut freed = 0;
        // Looked at again: whoever changed it while it was written down has it now.
        if book.holds() {
            for loan in &book.loans {
                if self.own_blob(&loan.bytes)?.is_some() && fs::remove_file(&self.blob_path(&loan.bytes))? {
                    freed += loan.bytes.len;
                }
            }
        }
        self.drop_older_books(&book)?;
        Ok(freed)
    }

    /// Removes the books of the files that had the path before, if nothing rests on them any more. Others are left for the
    /// collector, which can say what was lost with them.
    fn drop_older_books(&self, newest: &Book) -> Result<(), StoreError> {
        let prefix = Book::prefix(&newest.path);
        let newest_name = newest.name();
        for name in self.book_names()? {
            if !name.starts_with(&prefix) || name == newest_name {
                continue;
            }
            let Some((_, book)) = self.book(&name)? else { continue };
            let mut idle = book.is_same_file(newest);
            if !idle && !book.holds() {
                idle = true;
                for loan in &book.loans {
                    idle = idle && self.has_blob(&loan.bytes)?;
                }
            }
            if idle {
                self.remove_book(&name)?;
            }
        }
        Ok(())
    }
}

/// Returns how the names of a path's books begin, and the path as they have it.
fn absolute(path: &Path) -> Option<(String, String)> {
    let path = std::path::absolute(path).ok()?;
    let text = path.to_str()?;
    Some((Book::prefix(text), text.to_owned()))
}

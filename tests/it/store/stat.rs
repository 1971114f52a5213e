//! The stat cache: a file whose bytes changed is never taken for what it was, whatever its stamp is made to look like.

use std::cell::Cell;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use forge::digest::BlobDigest;
use forge::fs::Moment;
use forge::fs::Stamp;
use forge::store::ErrorClass;

use super::Place;
use super::corrupt;
use super::files_under;

/// Waits until the kernel's clock has gone on since the file last changed: until a change would show in its ctime.
fn outlast_the_tick(place: &Place, path: &Path) {
    let then = Stamp::of(path).unwrap().ctime_ns;
    let probe = place.path("probe");
    loop {
        std::fs::write(&probe, b"x").unwrap();
        if Stamp::of(&probe).unwrap().ctime_ns > then {
            return;
        }
    }
}

/// Makes a file and has the store remember it as if its stamp were old already.
fn remembered(place: &Place, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = place.path(name);
    std::fs::write(&path, bytes).unwrap();
    let stamp = Stamp::of(&path).unwrap();
    let later = Moment::at(SystemTime::now() + Duration::from_mins(1));
    assert!(
        place
            .store
            .remember(&stamp, &stamp, &later, &BlobDigest::of(bytes))
            .unwrap()
    );
    assert_eq!(place.store.known_digest(&path).unwrap(), Some(BlobDigest::of(bytes)));
    outlast_the_tick(place, &path);
    path
}

fn put_times_back(path: &Path, times: &std::fs::Metadata) {
    let times = std::fs::FileTimes::new()
        .set_modified(times.modified().unwrap())
        .set_accessed(times.accessed().unwrap());
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_times(times)
        .unwrap();
}

fn digest_of(place: &Place, path: &Path) -> BlobDigest {
    place.store.digest_file(path, &|_| {}).unwrap().0
}

#[test]
fn an_edit_in_place_with_restored_size_and_mtime_is_noticed() {
    let place = Place::new();
    let path = remembered(&place, "source", b"AAAA");
    let before = std::fs::metadata(&path).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(b"BBBB")
        .unwrap();
    put_times_back(&path, &before);
    let after = std::fs::metadata(&path).unwrap();
    let seen = |facts: &std::fs::Metadata| (facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec());
    assert_eq!(seen(&before), seen(&after), "what mtime-only tools look at is the same");
    assert_eq!(place.store.known_digest(&path).unwrap(), None);
    assert_eq!(digest_of(&place, &path), BlobDigest::of(b"BBBB"));
}

#[test]
fn an_edit_within_the_tick_in_which_the_file_was_read_is_seen() {
    let place = Place::new();
    let path = place.path("source");
    let mut same_stamp = 0;
    for round in 0..300_u32 {
        let (one, two) = (format!("{round:08}"), format!("{:08}", round + 1_000_000));
        std::fs::write(&path, &one).unwrap();
        let (digest, stamp) = place.store.digest_file(&path, &|_| {}).unwrap();
        assert_eq!(digest, BlobDigest::of(one.as_bytes()));
        let times = std::fs::metadata(&path).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all(two.as_bytes())
            .unwrap();
        put_times_back(&path, &times);
        same_stamp += u32::from(Stamp::of(&path).unwrap() == stamp);
        assert_eq!(digest_of(&place, &path), BlobDigest::of(two.as_bytes()));
    }
    // How often the stamp alone would have lied depends on the kernel; what is promised does not.
    eprintln!("{same_stamp} of 300 edits left the stamp as it was");
}

#[test]
fn another_file_renamed_over_is_seen_even_with_the_same_size_and_mtime() {
    let place = Place::new();
    let path = remembered(&place, "source", b"AAAA");
    let times = std::fs::metadata(&path).unwrap();
    let other = place.path("other");
    std::fs::write(&other, b"BBBB").unwrap();
    put_times_back(&other, &times);
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(place.store.known_digest(&path).unwrap(), None);
    assert_eq!(digest_of(&place, &path), BlobDigest::of(b"BBBB"));
}

#[test]
fn a_removed_file_whose_number_is_used_again_is_seen() {
    let place = Place::new();
    let path = remembered(&place, "source", b"AAAA");
    let times = std::fs::metadata(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        place.store.known_digest(&path).unwrap_err().class(),
        ErrorClass::Missing
    );
    std::fs::write(&path, b"BBBB").unwrap();
    put_times_back(&path, &times);
    assert_eq!(place.store.known_digest(&path).unwrap(), None);
    assert_eq!(digest_of(&place, &path), BlobDigest::of(b"BBBB"));
}

#[test]
fn an_edit_through_another_name_of_the_file_is_seen() {
    let place = Place::new();
    let path = place.path("source");
    let other = place.path("other");
    std::fs::write(&path, b"AAAA").unwrap();
    std::fs::hard_link(&path, &other).unwrap();
    let stamp = Stamp::of(&path).unwrap();
    let later = Moment::at(SystemTime::now() + Duration::from_mins(1));
    assert!(
        place
            .store
            .remember(&stamp, &stamp, &later, &BlobDigest::of(b"AAAA"))
            .unwrap()
    );
    assert_eq!(
        place.store.known_digest(&other).unwrap(),
        Some(BlobDigest::of(b"AAAA")),
        "one file, two names"
    );
    outlast_the_tick(&place, &path);
    let times = std::fs::metadata(&other).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&other)
        .unwrap()
        .write_all(b"BBBB")
        .unwrap();
    put_times_back(&other, &times);
    assert_eq!(place.store.known_digest(&path).unwrap(), None);
    assert_eq!(digest_of(&place, &path), BlobDigest::of(b"BBBB"));
}

#[test]
fn a_link_that_points_elsewhere_is_seen() {
    let place = Place::new();
    let one = remembered(&place, "one", b"AAAA");
    let two = place.path("two");
    std::fs::write(&two, b"BBBB").unwrap();
    put_times_back(&two, &std::fs::metadata(&one).unwrap());
    let link = place.path("link");
    std::os::unix::fs::symlink(&one, &link).unwrap();
    assert_eq!(digest_of(&place, &link), BlobDigest::of(b"AAAA"));
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&two, &link).unwrap();
    assert_eq!(digest_of(&place, &link), BlobDigest::of(b"BBBB"));
}

#[test]
fn a_stamp_that_changed_while_reading_or_is_too_young_is_not_remembered() {
    let place = Place::new();
    let path = place.path("source");
    std::fs::write(&path, b"AAAA").unwrap();
    let stamp = Stamp::of(&path).unwrap();
    let digest = BlobDigest::of(b"AAAA");
    let now = SystemTime::now();
    let later = Moment::at(now + Duration::from_mins(1));
    let other = Stamp {
        ctime_ns: stamp.ctime_ns + 1,
        ..stamp
    };
    assert!(
        !place.store.remember(&stamp, &other, &later, &digest).unwrap(),
        "changed meanwhile"
    );
    assert!(
        !place.store.remember(&stamp, &stamp, &Moment::at(now), &digest).unwrap(),
        "younger than the grain"
    );
    let earlier = Moment::at(now - Duration::from_hours(1));
    assert!(
        !place.store.remember(&stamp, &stamp, &earlier, &digest).unwrap(),
        "the clock was set back"
    );
    assert!(
        !place
            .store
            .remember(&stamp, &stamp, &later, &BlobDigest::of(b"AAAAA"))
            .unwrap(),
        "another length"
    );
    assert!(files_under(&place.store.root().join("stat-v1")).is_empty());
}

#[test]
fn a_file_that_was_waited_for_is_not_read_again() {
    let place = Place::new();
    let path = place.path("source");
    std::fs::write(&path, b"AAAA").unwrap();
    let reads = Cell::new(0);
    let count = |_| reads.set(reads.get() + 1);
    let (digest, stamp) = place.store.digest_settled(&path, &count).unwrap();
    assert!(reads.get() > 0);
    assert_eq!(place.store.known_digest(&path).unwrap(), Some(digest));
    place.store.check_unchanged(&path, &stamp).unwrap();
    reads.set(0);
    assert_eq!(place.store.digest_file(&path, &count).unwrap(), (digest, stamp));
    assert_eq!(place.store.digest_settled(&path, &count).unwrap(), (digest, stamp));
    assert_eq!(reads.get(), 0, "not a byte");
    std::fs::write(&path, b"BBBB").unwrap();
    assert_eq!(
        place.store.check_unchanged(&path, &stamp).unwrap_err().class(),
        ErrorClass::SourceChanged
    );
}

#[test]
fn a_damaged_entry_is_ignored() {
    let place = Place::new();
    let path = remembered(&place, "source", b"AAAA");
    let entries = files_under(&place.store.root().join("stat-v1"));
    assert_eq!(entries.len(), 1);
    let whole = std::fs::read(&entries[0]).unwrap();
    for at in 0..whole.len() {
        corrupt(&entries[0], |bytes| bytes[at] ^= 1);
        assert_eq!(place.store.known_digest(&path).unwrap(), None, "byte {at}");
        corrupt(&entries[0], |bytes| bytes.clone_from(&whole[..at].to_vec()));
        assert_eq!(place.store.known_digest(&path).unwrap(), None, "torn at {at}");
        corrupt(&entries[0], |bytes| bytes.clone_from(&whole));
    }
    assert_eq!(place.store.known_digest(&path).unwrap(), Some(BlobDigest::of(b"AAAA")));
    assert_eq!(digest_of(&place, &path), BlobDigest::of(b"AAAA"));
}

#[test]
fn only_regular_files_are_accepted() {
    let place = Place::new();
    let pipe = place.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for (path, words) in [
        (pipe.as_path(), "a named pipe"),
        (place.store.root(), "a directory"),
        (Path::new("/dev/zero"), "a device"),
    ] {
        let error = place.store.digest_file(path, &|_| {}).unwrap_err();
        let words = format!("it is {words}, not a regular file");
        assert!(error.to_string().contains(&words), "{error}");
    }
    let error = place.store.digest_file(&place.path("nothing"), &|_| {}).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Missing);
}

#[test]
fn reading_a_file_that_keeps_growing_ends_with_an_error() {
    let place = Place::new();
    let path = place.path("source");
    std::fs::write(&path, vec![0; 9 << 20]).unwrap();
    let file = File::options().append(true).open(&path).unwrap();
    let error = place
        .store
        .digest_file(&path, &|_| (&file).write_all(&vec![1; 1 << 20]).unwrap())
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::SourceChanged, "{error}");
}

//! Blobs: whole or absent, read-only, never linked to, damage seen and mended.

use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use forge::digest::BlobDigest;
use forge::fs::Stamp;
use forge::store::ErrorClass;
use forge::store::Store;
use forge::store::StoreError;

use super::Place;
use super::assert_all_blobs_whole;
use super::corrupt;
use super::files_under;
use super::skip;

#[test]
fn a_blob_is_found_under_the_name_that_b3sum_prints() {
    let place = Place::new();
    let digest = place.store.put(b"abc").unwrap();
    let hex = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    assert_eq!(digest.to_string(), format!("{hex}:3"));
    let path = place.store.root().join("cas-v1").join(&hex[..2]).join(&hex[2..]);
    let facts = std::fs::metadata(&path).unwrap();
    assert_eq!(facts.mode() & 0o7777, 0o444);
    assert!(place.store.has(&digest));
    assert_eq!(place.store.read(&digest, 3).unwrap(), b"abc");
    // A second copy changes nothing.
    assert_eq!(place.store.put(b"abc").unwrap(), digest);
    let mut writer = place.store.writer().unwrap();
    writer.write_all(b"a").unwrap();
    writer.write_all(b"bc").unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), facts.ino());
    assert_eq!(
        files_under(&place.store.root().join("tmp")).len(),
        1,
        "only this process's lock"
    );
    assert!(
        std::fs::read_to_string(place.store.root().join("CACHEDIR.TAG"))
            .unwrap()
            .starts_with("Signature: 8a477f59")
    );
}

#[test]
fn an_absent_file_is_missing_and_a_too_large_one_is_not_read() {
    let place = Place::new();
    let digest = BlobDigest::of(b"never stored");
    assert!(!place.store.has(&digest));
    assert!(matches!(place.store.read(&digest, 99), Err(StoreError::Missing { digest: named, .. }) if named == digest));
    assert!(matches!(
        place.store.copy_to(&digest, &mut io::sink()),
        Err(StoreError::Missing { .. })
    ));
    let error = place.store.materialize(&digest, &place.path("out")).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Missing);
    assert!(!place.path("out").exists());
    let digest = place.store.put(b"four").unwrap();
    assert!(matches!(
        place.store.read(&digest, 3),
        Err(StoreError::TooLarge { cap: 3, .. })
    ));
}

#[test]
fn the_right_hash_with_a_wrong_length_is_another_blob() {
    let place = Place::new();
    let digest = place.store.put(b"four").unwrap();
    for len in [0, 3, 5, u64::MAX] {
        let wrong = BlobDigest { hash: digest.hash, len };
        assert!(!place.store.has(&wrong));
        assert!(
            matches!(place.store.read(&wrong, u64::MAX), Err(StoreError::Missing { .. })),
            "{len}"
        );
        assert!(matches!(
            place.store.verify(&wrong),
            Err(StoreError::Missing { .. } | StoreError::Damaged { .. })
        ));
        assert!(
            place.store.has(&digest),
            "a wrong question does not cost the blob ({len})"
        );
    }
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let place = Place::new();
    let mut writer = place.store.writer().unwrap();
    writer.write_all(&vec![1; 3 << 20]).unwrap();
    drop(writer);
    assert_eq!(
        files_under(&place.store.root().join("tmp")).len(),
        1,
        "only this process's lock"
    );
    assert_eq!(assert_all_blobs_whole(place.store.root()), 0);
    let root = place.store.root().to_owned();
    drop(place.store);
    assert!(files_under(&root.join("tmp")).is_empty());
}

type Damage = (&'static str, fn(&mut Vec<u8>));
type Reader<'a> = (&'static str, &'a dyn Fn(&BlobDigest) -> Result<(), StoreError>);

#[test]
fn damage_is_seen_by_every_reader_quarantined_and_repaired_by_the_next_writer() {
    let place = Place::new();
    let store = &place.store;
    let bytes: Vec<u8> = (0..(1 << 20) + 5_u32).map(|at| (at % 251) as u8).collect();
    let damages: [Damage; 5] = [
        ("a flipped bit", |bytes| bytes[777] ^= 1),
        ("the last bit", |bytes| *bytes.last_mut().unwrap() ^= 0x80),
        ("cut short", |bytes| bytes.truncate(1000)),
        ("empty, as after a power cut", Vec::clear),
        ("one byte too many", |bytes| bytes.push(0)),
    ];
    let readers: [Reader; 4] = [
        ("read", &|digest| store.read(digest, u64::MAX).map(drop)),
        ("copy_to", &|digest| store.copy_to(digest, &mut Vec::new())),
        ("materialize", &|digest| {
            store.materialize(digest, &place.path("out")).map(drop)
        }),
        ("verify", &|digest| store.verify(digest)),
    ];
    std::fs::write(place.path("out"), b"what stood there").unwrap();
    let mut quarantined = 0;
    for (damage, change) in damages {
        for (reader, read) in readers {
            let digest = store.put(&bytes).unwrap();
            let path = place.blob_path(&digest);
            corrupt(&path, change);
            let broken = std::fs::read(&path).unwrap();
            let error = read(&digest).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Damaged, "{damage}, {reader}");
            let StoreError::Damaged {
                digest: named,
                moved_to,
                ..
            } = error
            else {
                panic!("{error}")
            };
            assert_eq!(named, digest);
            assert_eq!(
                std::fs::read(moved_to).unwrap(),
                broken,
                "{damage}, {reader}: nothing is thrown away"
            );
            assert!(!store.has(&digest), "{damage}, {reader}: not accepted any more");
            quarantined += 1;
            assert_eq!(files_under(&store.root().join("quarantine")).len(), quarantined);
            assert_eq!(store.put(&bytes).unwrap(), digest);
            assert_eq!(
                store.read(&digest, u64::MAX).unwrap(),
                bytes,
                "{damage}, {reader}: made again"
            );
        }
    }
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"what stood there");
}

#[test]
fn a_writer_does_not_take_a_blob_of_a_wrong_length_for_its_own() {
    let place = Place::new();
    let digest = place.store.put(b"whole").unwrap();
    corrupt(&place.blob_path(&digest), |bytes| bytes.truncate(2));
    assert!(!place.store.has(&digest));
    let mut writer = place.store.writer().unwrap();
    writer.write_all(b"whole").unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
    assert_eq!(place.store.read(&digest, 99).unwrap(), b"whole");
    assert_eq!(files_under(&place.store.root().join("quarantine")).len(), 1);
}

#[test]
fn outputs_are_files_of_their_own() {
    let place = Place::new();
    let digest = place.store.put(b"the model").unwrap();
    let blob = place.blob_path(&digest);
    let out = place.path("out.gguf");
    std::fs::hard_link(&blob, &out).unwrap();
    // Even in place of a hard link that somebody else made.
    place.store.materialize(&digest, &out).unwrap();
    let facts = std::fs::metadata(&out).unwrap();
    assert_ne!(facts.ino(), std::fs::metadata(&blob).unwrap().ino());
    assert_eq!((facts.nlink(), std::fs::metadata(&blob).unwrap().nlink()), (1, 1));
    // What an engine or a user does to an output.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&out)
        .unwrap()
        .write_all(b"THE")
        .unwrap();
    place.store.verify(&digest).unwrap();
    assert_eq!(std::fs::metadata(&blob).unwrap().mode() & 0o7777, 0o444);
}

#[test]
fn a_finished_file_becomes_a_blob_and_somebody_elses_file_does_not() {
    let place = Place::new();
    let scratch = place.store.scratch().unwrap();
    let out = scratch.path().join("out");
    std::fs::write(&out, b"an output").unwrap();
    let ino = std::fs::metadata(&out).unwrap().ino();
    let digest = place.store.adopt(&out, &|_| {}).unwrap();
    assert_eq!(digest, BlobDigest::of(b"an output"));
    let facts = std::fs::metadata(place.blob_path(&digest)).unwrap();
    assert_eq!((facts.ino(), facts.mode() & 0o7777), (ino, 0o444), "moved, not copied");
    assert!(!out.exists());

    let source = place.path("source");
    std::fs::write(&source, b"the user's own").unwrap();
    let links: [fn(&std::path::Path, &std::path::Path) -> io::Result<()>; 2] = [
        |from, to| std::fs::hard_link(from, to),
        |from, to| std::os::unix::fs::symlink(from, to),
    ];
    for link in links {
        link(&source, &out).unwrap();
        let digest = place.store.adopt(&out, &|_| {}).unwrap();
        assert!(!out.exists());
        let blob = std::fs::symlink_metadata(place.blob_path(&digest)).unwrap();
        let facts = std::fs::metadata(&source).unwrap();
        assert!(blob.is_file() && blob.ino() != facts.ino());
        assert_eq!(facts.mode() & 0o200, 0o200, "the user's file stays as it was");
    }
    let path = scratch.path().to_owned();
    std::fs::write(path.join("left over"), b"").unwrap();
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn many_writers_of_one_blob_make_it_once_and_readers_never_see_a_part() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 253) as u8).collect();
    let digest = BlobDigest::of(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Store::open(place.store.root()).unwrap();
                let mut writer = store.writer().unwrap();
                bytes.chunks(70_001).for_each(|chunk| writer.write_all(chunk).unwrap());
                assert_eq!(writer.commit().unwrap(), digest);
                assert!(store.has(&digest));
            });
            scope.spawn(|| {
                loop {
                    match place.store.read(&digest, u64::MAX) {
                        Ok(read) => break assert!(read == bytes),
                        Err(error) => assert_eq!(error.class(), ErrorClass::Missing, "{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(assert_all_blobs_whole(place.store.root()), 1);
    assert!(files_under(&place.store.root().join("quarantine")).is_empty());
}

/// A small file system, if this machine lets the user make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=2m,nr_inodes=2000", "tmpfs"])
            .arg(dir.path());
        let mounted = mount
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status()
            .ok();
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_accepted_blob() {
    let Some(disk) = SmallDisk::new() else {
        return skip("no small file system can be mounted here: ENOSPC is untested");
    };
    let root = disk.0.path().join("store");
    let store = Store::open(&root).unwrap();
    let small = vec![1; 100_000];
    let kept = store.put(&small).unwrap();
    let large = vec![7_u8; 4 << 20];

    let error = store.put(&large).unwrap_err();
    assert_eq!(error.class(), ErrorClass::DiskFull, "{error}");
    assert!(error.to_string().contains(&*root.to_string_lossy()), "{error}");

    // A caller that ignores a failed write gets no blob, though some bytes arrived.
    let mut writer = store.writer().unwrap();
    let error = writer.write_all(&large).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(matches!(writer.commit(), Err(StoreError::WriteFailed { .. })));

    // An output on a full disk: what stood there stays.
    let other = Place::new();
    let digest = other.store.put(&large).unwrap();
    let out = disk.0.path().join("out");
    std::fs::write(&out, b"old").unwrap();
    let error = other.store.materialize(&digest, &out).unwrap_err();
    assert_eq!(error.class(), ErrorClass::DiskFull, "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"old");

    assert_eq!(files_under(&root.join("tmp")).len(), 1, "no half-written file stays");
    assert_eq!(assert_all_blobs_whole(&root), 1);
    assert_eq!(store.read(&kept, 100_000).unwrap(), small);
    assert!(store.free_space().unwrap() > 500_000, "the space is free again");
    store.put(&vec![2; 100_000]).unwrap();
}

#[test]
fn a_directory_that_is_not_a_store_is_rejected_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), b"").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, StoreError::NotAStore { found, .. } if found == "letter.txt"),
        "{error}"
    );
    assert_eq!(files_under(dir.path()), [dir.path().join("letter.txt")]);
}

#[test]
fn a_newer_layout_is_rejected_and_not_changed() {
    let place = Place::new();
    let root = place.store.root().to_owned();
    let layout = root.join("layout");
    assert_eq!(std::fs::read_to_string(&layout).unwrap(), "forge-store 1\n");
    std::fs::write(&layout, "forge-store 2\n").unwrap();
    let before = Stamp::of(&layout).unwrap();
    let error = Store::open(&root).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::Newer);
    assert_eq!(Stamp::of(&layout).unwrap(), before);
    // What no program writes is damage, and the rest of the store says that it is one.
    for bad in [
        "",
        "forge-store",
        "forge-store 0\n",
        "forge-store -1\n",
        "something else",
    ] {
        std::fs::write(&layout, bad).unwrap();
        drop(Store::open(&root).unwrap());
        assert_eq!(std::fs::read_to_string(&layout).unwrap(), "forge-store 1\n", "{bad:?}");
    }
}

#[test]
fn missing_directories_of_a_store_are_created_again() {
    let place = Place::new();
    let digest = place.store.put(b"abc").unwrap();
    std::fs::remove_dir_all(place.store.root().join("cas-v1")).unwrap();
    assert!(!place.store.has(&digest));
    assert_eq!(place.store.put(b"abc").unwrap(), digest);
    std::fs::remove_dir_all(place.store.root().join("actions-v1")).unwrap();
    std::fs::remove_dir_all(place.store.root().join("quarantine")).unwrap();
    let again = Store::open(place.store.root()).unwrap();
    assert_eq!(again.read(&digest, 3).unwrap(), b"abc");
    assert_eq!(again.lookup(&super::key("a")).unwrap(), None);
}

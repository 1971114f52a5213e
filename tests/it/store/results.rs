//! Action results: a hit is whole, the first stays, damage is a miss.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use forge::store::Committed;
use forge::store::ErrorClass;
use forge::store::Lookup;
use forge::store::Store;
use forge::store::StoreError;
use forge::store::StoreEvent;

use super::Place;
use super::corrupt;
use super::files_under;
use super::key;
use super::result_of;

#[test]
fn a_result_is_a_hit_once_it_is_committed() {
    let place = Place::new();
    let key = key("a");
    assert_eq!(place.store.find(&key).unwrap(), Lookup::Absent);
    let result = result_of(&place.store, "a", b"bytes");
    assert_eq!(place.store.commit(&key, &result).unwrap(), Committed::New);
    assert_eq!(place.store.lookup(&key).unwrap(), Some(result.clone()));
    let again = Store::open(place.store.root()).unwrap();
    assert_eq!(again.find(&key).unwrap(), Lookup::Hit(result.clone()));
    // What it cost never is the same.
    let mut dearer = result.clone();
    dearer.cost_ms += 1;
    assert_eq!(place.store.commit(&key, &dearer).unwrap(), Committed::Same);
    assert_eq!(place.store.lookup(&key).unwrap(), Some(result));
    assert_eq!(place.store.events().unwrap(), []);
}

#[test]
fn a_result_with_missing_blobs_is_not_committed() {
    let place = Place::new();
    let mut result = result_of(&place.store, "a", b"bytes");
    let missing = forge::digest::BlobDigest::of(b"never stored");
    result.outputs.insert("more".to_owned(), missing);
    let error = place.store.commit(&key("a"), &result).unwrap_err();
    assert!(
        matches!(&error, StoreError::Incomplete { missing: named, .. } if *named == [missing]),
        "{error}"
    );
    assert_eq!(place.store.find(&key("a")).unwrap(), Lookup::Absent);
}

#[test]
fn a_later_different_result_is_recorded_once_and_does_not_replace_the_first() {
    let place = Place::new();
    let key = key("a");
    let first = result_of(&place.store, "a", b"one");
    let mut second = result_of(&place.store, "a", b"two");
    place.store.commit(&key, &first).unwrap();
    for _ in 0..3 {
        let Committed::Differs(event) = place.store.commit(&key, &second).unwrap() else {
            panic!("not noticed")
        };
        let StoreEvent::Nondeterminism {
            key: named,
            kept,
            differing,
        } = *event
        else {
            panic!("another event")
        };
        assert_eq!((named, kept, differing), (key, first.clone(), second.clone()));
        second.cost_ms += 1;
    }
    assert_eq!(place.store.lookup(&key).unwrap(), Some(first));
    assert_eq!(place.store.events().unwrap().len(), 1);
}

#[test]
fn a_result_without_its_blob_is_a_miss_and_is_replaced() {
    let place = Place::new();
    let key = key("a");
    let first = result_of(&place.store, "a", b"one");
    place.store.commit(&key, &first).unwrap();
    let damages: [fn(&std::path::Path); 2] = [
        |path| std::fs::remove_file(path).unwrap(),
        |path| corrupt(path, |bytes| bytes.truncate(1)),
    ];
    for damage in damages {
        let result = place.store.lookup(&key).unwrap().unwrap();
        damage(&place.blob_path(&result.outputs["out"]));
        assert_eq!(place.store.lookup(&key).unwrap(), None);
        assert_eq!(place.store.lookup_shallow(&key).unwrap(), Some(result.clone()));
        let missing = vec![result.outputs["out"]];
        assert_eq!(
            place.store.find(&key).unwrap(),
            Lookup::Incomplete {
                result: result.clone(),
                missing
            }
        );
        let other = result_of(&place.store, "a", format!("not {:?}", result.outputs).as_bytes());
        assert_eq!(place.store.commit(&key, &other).unwrap(), Committed::New);
        assert_eq!(place.store.lookup(&key).unwrap(), Some(other));
    }
    // The action's own document counts, too.
    let result = place.store.lookup(&key).unwrap().unwrap();
    std::fs::remove_file(place.blob_path(&result.action)).unwrap();
    assert_eq!(place.store.lookup(&key).unwrap(), None);
}

#[test]
fn a_damaged_result_is_a_miss_quarantined_and_made_again() {
    let place = Place::new();
    let key = key("a");
    let result = result_of(&place.store, "a", b"one");
    place.store.commit(&key, &result).unwrap();
    let path = place.result_path(&key);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![vec![], vec![0; whole.len()], whole[..whole.len() / 2].to_vec()];
    for at in (0..whole.len()).step_by(13) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        damaged.push(bytes);
    }
    for (count, bytes) in damaged.into_iter().enumerate() {
        corrupt(&path, |file| file.clone_from(&bytes));
        let Lookup::Damaged { moved_to } = place.store.find(&key).unwrap() else {
            panic!("accepted {count}")
        };
        assert_eq!(std::fs::read(moved_to).unwrap(), bytes);
        assert_eq!(place.store.lookup(&key).unwrap(), None);
        // Half of the time the committer is the one who finds the damage.
        if count % 2 == 0 {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(place.store.commit(&key, &result).unwrap(), Committed::New);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_result_copied_to_another_key_is_rejected() {
    let place = Place::new();
    let result = result_of(&place.store, "a", b"one");
    place.store.commit(&key("a"), &result).unwrap();
    std::fs::create_dir_all(place.result_path(&key("b")).parent().unwrap()).unwrap();
    std::fs::copy(place.result_path(&key("a")), place.result_path(&key("b"))).unwrap();
    assert!(matches!(place.store.find(&key("b")).unwrap(), Lookup::Damaged { .. }));
    assert_eq!(place.store.lookup(&key("a")).unwrap(), Some(result));
}

#[test]
fn a_result_of_a_newer_program_is_refused_and_stays() {
    let place = Place::new();
    let key = key("a");
    let result = result_of(&place.store, "a", b"one");
    let body = format!("forge-result 2 {key}\n{{\"new\":true}}\n");
    let text = format!("{body}{}\n", forge::digest::Hash::of(body.as_bytes()));
    std::fs::write(place.result_path(&key), &text).unwrap();
    assert_eq!(place.store.lookup(&key).unwrap_err().class(), ErrorClass::Newer);
    assert_eq!(
        place.store.commit(&key, &result).unwrap_err().class(),
        ErrorClass::Newer
    );
    assert_eq!(std::fs::read_to_string(place.result_path(&key)).unwrap(), text);
}

#[test]
fn of_many_different_first_results_exactly_one_stays() {
    let place = Place::new();
    let key = key("a");
    let new = AtomicU32::new(0);
    let results: Vec<_> = (0..8)
        .map(|at| result_of(&place.store, "a", format!("result {at}").as_bytes()))
        .collect();
    std::thread::scope(|scope| {
        for result in &results {
            scope.spawn(|| {
                let store = Store::open(place.store.root()).unwrap();
                match store.commit(&key, result).unwrap() {
                    Committed::New => drop(new.fetch_add(1, Ordering::SeqCst)),
                    other => assert!(matches!(other, Committed::Differs(_)), "{other:?}"),
                }
            });
        }
    });
    assert_eq!(new.into_inner(), 1);
    assert_eq!(place.store.events().unwrap().len(), 7);
    let kept = place.store.lookup(&key).unwrap().unwrap();
    for event in place.store.events().unwrap() {
        let StoreEvent::Nondeterminism { kept: named, .. } = event else {
            panic!("another event")
        };
        assert_eq!(named, kept);
    }
}

#[test]
fn waiting_for_a_lock_can_be_cancelled() {
    let place = Place::new();
    let key = key("a");
    let held = place
        .store
        .lock_action(&key, &mut |_| panic!("nobody holds it"), &|| false)
        .unwrap();
    let said = AtomicU32::new(0);
    let error = place
        .store
        .lock_action(
            &key,
            &mut |holder| {
                assert_eq!(holder.pid, Some(std::process::id()));
                assert!(holder.since.is_some());
                said.fetch_add(1, Ordering::SeqCst);
            },
            &|| said.load(Ordering::SeqCst) > 0,
        )
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Cancelled);
    assert_eq!(said.into_inner(), 1);
    // Another action is nobody's business.
    place
        .store
        .lock_action(&super::key("b"), &mut |_| panic!("nobody holds it"), &|| false)
        .unwrap();
    drop(held);
    place
        .store
        .lock_action(&key, &mut |_| panic!("nobody holds it"), &|| false)
        .unwrap();
    let locks = files_under(&place.store.root().join("locks"));
    assert!(
        locks.iter().all(|path| !path.to_string_lossy().contains("action-")),
        "{locks:?}"
    );
}

#[test]
fn leases_are_counted_and_end_with_the_last_of_them() {
    let place = Place::new();
    let other = Store::open(place.store.root()).unwrap();
    assert!(!place.store.is_leased());
    let (one, two) = (place.store.lease().unwrap(), other.lease().unwrap());
    let again = place.store.lease().unwrap();
    assert_eq!(other.live_leases().unwrap(), 2, "one for each store");
    drop(one);
    assert!(place.store.is_leased());
    assert_eq!(other.live_leases().unwrap(), 2);
    drop(again);
    assert_eq!(other.live_leases().unwrap(), 1);
    drop(two);
    assert_eq!(other.live_leases().unwrap(), 0);
    assert!(files_under(&place.store.root().join("leases")).is_empty());
}

//! What every [`ObjectCache`] must do. Run by the tests of the store on disk and of the fakes that stand in for it.

use bytes::Bytes;
use layer_format::Digest;

use crate::cache::ObjectCache;

fn object(n: u32, len: usize) -> (Digest, Bytes) {
    let bytes: Bytes = n.to_le_bytes().iter().copied().cycle().take(len).collect();
    (Digest::of(&bytes), bytes)
}

/// Runs all checks on an empty cache.
///
/// # Panics
/// If the cache breaks the contract.
pub fn check(cache: &dyn ObjectCache) {
    what_was_inserted_is_found(cache);
    a_miss_is_not_an_error(cache);
    inserting_again_changes_nothing(cache);
    many_threads_agree(cache);
}

fn what_was_inserted_is_found(cache: &dyn ObjectCache) {
    let objects: Vec<_> = [1, 4, 100, 16 << 10, 64 << 10, 1 << 20].iter().enumerate().map(|(n, len)| object(n as u32, *len)).collect();
    cache.insert(&objects).expect("inserting works");
    let digests: Vec<Digest> = objects.iter().map(|(digest, _)| *digest).collect();
    for flushed in [false, true] {
        assert!(cache.contains(&digests).expect("the index can be read").iter().all(|found| *found), "flushed: {flushed}");
        for (digest, bytes) in &objects {
            assert_eq!(cache.get(digest).expect("reading works").as_ref(), Some(bytes), "flushed: {flushed}");
        }
        cache.flush().expect("flushing works");
    }
}

fn a_miss_is_not_an_error(cache: &dyn ObjectCache) {
    let absent = Digest::of(b"never inserted");
    assert_eq!(cache.get(&absent).expect("a miss is no error"), None);
    assert_eq!(cache.contains(&[absent]).expect("a miss is no error"), [false]);
    assert_eq!(cache.contains(&[]).expect("nothing is no error"), [false; 0]);
    cache.flush().expect("nothing to flush is no error");
}

fn inserting_again_changes_nothing(cache: &dyn ObjectCache) {
    let (digest, bytes) = object(77, 5000);
    for _ in 0..3 {
        cache.insert(&[(digest, bytes.clone()), (digest, bytes.clone())]).expect("inserting works");
        cache.flush().expect("flushing works");
        assert_eq!(cache.get(&digest).expect("reading works"), Some(bytes.clone()));
    }
}

fn many_threads_agree(cache: &dyn ObjectCache) {
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                for n in 0..40 {
                    let (digest, bytes) = object(1000 + (n * 7 + thread) % 60, 3000);
                    cache.insert(&[(digest, bytes.clone())]).expect("inserting works");
                    assert_eq!(cache.get(&digest).expect("reading works"), Some(bytes));
                    if n % 16 == thread {
                        cache.flush().expect("flushing works");
                    }
                }
            });
        }
    });
}

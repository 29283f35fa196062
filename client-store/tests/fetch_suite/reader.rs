//! The layer reader against the plain contents.

use std::sync::Arc;

use client_store::LayerView;
use client_store::fetch::{Fetcher, FetcherOptions};
use client_store::guess::Guess;
use client_store::reader::{LayerReader, Nodes};
use client_store::recorder::Recorder;
use client_store::view::Caller;
use layer_format::entry::Entry;
use layer_format::trace::{BUCKET_LEN, Source, Touch};
use layer_format::{Digest, LayerPath};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{FakeCache, FakeOrigin, Image, repository, runtime};

struct Reader {
    layer: LayerReader,
    recorder: Arc<Recorder>,
    origin: FakeOrigin,
    fetcher: Arc<Fetcher>,
    _runtime: tokio::runtime::Runtime,
}

/// `node_bytes` small: nodes are parsed again and again.
fn reader(image: &Image, cache: Arc<FakeCache>, node_bytes: usize) -> Reader {
    let (runtime, origin) = (runtime(), FakeOrigin::holding(&image.objects));
    let fetcher = Arc::new(Fetcher::new(FetcherOptions::new(cache, Some(Arc::new(origin.clone())), repository(), runtime.handle().clone())));
    let recorder = Arc::new(Recorder::new());
    let nodes = Arc::new(Nodes::new(fetcher.clone(), node_bytes));
    let guess = Arc::new(Guess::new(nodes.clone(), vec![image.root.digest], Vec::new()));
    let layer = LayerReader::new(0, image.root.digest, nodes, recorder.clone(), None, guess);
    Reader { layer, recorder, origin, fetcher, _runtime: runtime }
}

fn caller(pid: u32) -> Caller {
    Caller { pid }
}

fn listing(image: &Image, directory: &LayerPath, after: Option<&[u8]>, max: usize) -> Vec<Entry> {
    let children = image.entries.values().filter(|entry| entry.path.parent().as_ref() == Some(directory));
    children.filter(|entry| after.is_none_or(|after| entry.path.name() > after)).take(max).cloned().collect()
}

fn check(seed: u64, count: usize, chunks: usize) {
    let image = Image::random(seed, count, chunks);
    let run = reader(&image, Arc::default(), 4096);
    let mut rng = StdRng::seed_from_u64(seed);
    let paths: Vec<&LayerPath> = image.entries.keys().collect();
    for _ in 0..60 {
        let path = paths[rng.random_range(0..paths.len())];
        let entry = run.layer.lookup(path, caller(1)).unwrap();
        assert_eq!(entry.as_ref(), image.entries.get(path));
        let absent = path.join(b"absent").unwrap();
        assert_eq!(run.layer.lookup(&absent, caller(2)).unwrap(), None);
        let after = rng.random_bool(0.5).then_some(&b"file3"[..]);
        let max = rng.random_range(0..40);
        assert_eq!(run.layer.list(path, after, max, caller(1)).unwrap(), listing(&image, path, after, max));
        let (Some(entry), Some(content)) = (entry, image.contents.get(path)) else { continue };
        let (offset, len) = (rng.random_range(0..content.len() + 10), rng.random_range(0..100_000));
        let expected = content.get(offset..(offset + len).min(content.len())).unwrap_or_default();
        assert_eq!(run.layer.read(&entry, offset as u64, len, caller(1)).unwrap(), expected);
    }
    assert_eq!(run.layer.list(&LayerPath::root(), None, usize::MAX, caller(1)).unwrap(), listing(&image, &LayerPath::root(), None, usize::MAX));
    assert!(run.fetcher.stats().bytes_needed > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_was_put_in(seed in any::<u64>(), count in 1usize..400, chunks in 1usize..20) {
        check(seed, count, chunks);
    }
}

#[test]
fn reads_a_large_file_through_recipe_nodes() {
    check(7, 3, 600);
}

#[test]
fn seeks_data_and_holes() {
    let image = Image::random(40, 40, 12);
    let run = reader(&image, FakeCache::holding(&image.objects), 1 << 20);
    for (path, content) in &image.contents {
        let entry = &image.entries[path];
        let len = content.len() as u64;
        assert_eq!(run.layer.seek(entry, len, false, caller(1)).unwrap(), None);
        assert_eq!(run.layer.seek(entry, len, true, caller(1)).unwrap(), None);
        let mut at = 0;
        // Data and holes alternate, cover the file, and holes are zeros.
        while let Some(data) = run.layer.seek(entry, at, false, caller(1)).unwrap() {
            assert!(content[at as usize..data as usize].iter().all(|byte| *byte == 0));
            at = run.layer.seek(entry, data, true, caller(1)).unwrap().unwrap();
            assert!(at > data && at <= len);
            if at == len {
                break;
            }
        }
        assert!(content[at as usize..].iter().all(|byte| *byte == 0));
    }
    assert_eq!(run.origin.requests(), 0);
}

#[test]
fn one_read_is_one_request_and_small_files_come_whole() {
    let image = Image::random(41, 1, 8);
    let (path, content) = image.contents.iter().next().unwrap();
    let run = reader(&image, Arc::default(), 1 << 20);
    let entry = run.layer.lookup(path, caller(1)).unwrap().unwrap();
    let before = run.origin.requests();
    run.layer.read(&entry, 0, 40_000, caller(1)).unwrap();
    assert_eq!(run.origin.requests(), before + 1);
    run.layer.read(&entry, 0, content.len(), caller(1)).unwrap();
    assert!(image.chunks(path).iter().all(|digest| run.origin.times_asked(digest) <= 1));
}

#[test]
fn records_what_was_touched_and_where_it_came_from() {
    let image = Image::random(42, 30, 10);
    let run = reader(&image, Arc::default(), 1 << 20);
    let (path, content) = image.contents.iter().max_by_key(|(_, content)| content.len()).unwrap();
    let entry = run.layer.lookup(path, caller(10)).unwrap().unwrap();
    run.layer.lookup(path, caller(10)).unwrap();
    run.layer.read(&entry, 0, 10, caller(10)).unwrap();
    run.layer.read(&entry, 0, 10, caller(11)).unwrap();
    run.layer.read(&entry, 0, content.len(), caller(11)).unwrap();
    let trace = run.recorder.trace(Digest::of(b"image"), "app", "x86_64");
    assert_eq!((&trace.paths[0], trace.events[0].touch, trace.events[0].source), (path, Touch::Meta, Source::Missed));
    let buckets: Vec<u64> = trace
        .events
        .iter()
        .filter_map(|event| match event.touch {
            Touch::Data { bucket } => Some(u64::from(bucket)),
            Touch::Meta => None,
        })
        .collect();
    assert_eq!(buckets, (0..(content.len() as u64).div_ceil(BUCKET_LEN)).collect::<Vec<_>>());
    assert_eq!(trace.events.iter().filter(|event| event.process == 0).count(), 2);
    // The same again, all local: a new recorder sees no miss.
    run.fetcher.flush();
    let cache = FakeCache::holding(&image.objects);
    let warm = reader(&image, cache, 1 << 20);
    let entry = warm.layer.lookup(path, caller(1)).unwrap().unwrap();
    warm.layer.read(&entry, 0, content.len(), caller(1)).unwrap();
    assert_eq!(warm.recorder.counts()[1..], [0, 0]);
    assert_eq!(warm.origin.requests(), 0);
}

#[test]
fn hostile_objects_are_errors() {
    let image = Image::random(43, 300, 2);
    // Digests are right, contents are not tree nodes.
    let mut objects = image.objects.clone();
    let root = Digest::of(b"not a node");
    objects.insert(root, b"not a node"[..].to_vec().into());
    let (runtime, origin) = (runtime(), FakeOrigin::holding(&objects));
    let options = FetcherOptions::new(Arc::<FakeCache>::default(), Some(Arc::new(origin)), repository(), runtime.handle().clone());
    let nodes = Arc::new(Nodes::new(Arc::new(Fetcher::new(options)), 1 << 20));
    let guess = Arc::new(Guess::disabled(nodes.clone()));
    let layer = LayerReader::new(0, root, nodes, Arc::new(Recorder::new()), None, guess);
    assert!(layer.lookup(&LayerPath::root(), caller(1)).unwrap_err().to_string().contains("is not valid"));
    assert!(layer.list(&LayerPath::root(), None, 10, caller(1)).is_err());
}

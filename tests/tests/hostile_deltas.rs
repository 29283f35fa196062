//! Packs with delta frames from whoever may push: what they are compressed against has to be in the namespace, in plain frames,
//! where one read gets it; and requests that offer what is not there.

use client_store::origin::{ObjectStream, Received};
use client_store::remote::{Registry, RegistryOptions};
use client_store::{Origin, OriginError};
use futures::StreamExt;
use integration_tests::TestRegistry;
use layer_format::Digest;
use layer_format::api::WantedGroup;
use layer_format::frame::{Frame, FrameBuilder, delta};
use layer_format::pack;
use layer_format::reference::Repository;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// The object with some bytes changed.
fn like(base: &[u8], seed: u8) -> Vec<u8> {
    let mut out = base.to_vec();
    out.iter_mut().step_by(997).for_each(|byte| *byte ^= seed);
    out
}

fn builder(objects: &[&[u8]]) -> FrameBuilder {
    let mut builder = FrameBuilder::new();
    objects.iter().for_each(|object| builder.push(object).unwrap());
    builder
}

/// A pack of one delta frame.
fn delta_pack(objects: &[&[u8]], bases: &[Digest], prefix: &[u8], header: [u8; 16]) -> Vec<u8> {
    let frame = builder(objects).encode_delta(3, bases, prefix).unwrap();
    let mut pack = pack::PackBuilder::new();
    pack.push(&frame, &objects.iter().map(|object| (Digest::of(object), object.len() as u32)).collect::<Vec<_>>()).unwrap();
    [&header[..], &frame, &pack.finish().0].concat()
}

struct Client {
    registry: Registry,
    folder: tempfile::TempDir,
}

impl Client {
    async fn put(&self, repository: &Repository, pack: &[u8]) -> Result<bool, OriginError> {
        let (digest, path) = (Digest::of(pack), self.folder.path().join("pack"));
        std::fs::write(&path, pack).unwrap();
        self.registry.put_pack(repository, &digest, &path, |_| {}).await
    }

    #[track_caller]
    fn refused(answer: Result<bool, OriginError>, wanted: &str, why: &str) {
        match answer {
            Err(OriginError::Refused { code, .. }) => assert_eq!(code, wanted, "{why}"),
            other => panic!("{why}: {other:?}"),
        }
    }

    async fn lacks(&self, repository: &Repository, object: &[u8]) -> bool {
        self.registry.missing(repository, &[Digest::of(object)]).await.unwrap()[0]
    }

    /// The frames of an answer.
    async fn frames(&self, stream: ObjectStream) -> Vec<bytes::Bytes> {
        let records: Vec<_> = stream.collect().await;
        let records = records.into_iter().map(|record| record.unwrap());
        records.filter_map(|record| if let Received::Frame(bytes) = record { Some(bytes) } else { None }).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delta_frames_need_what_the_namespace_has() {
    let server = TestRegistry::start();
    let client = Client { registry: Registry::new(&server.url(), RegistryOptions::default()).unwrap(), folder: tempfile::tempdir().unwrap() };
    let [own, other]: [Repository; 2] = ["tools/app".parse().unwrap(), "others/app".parse().unwrap()];
    let (base, far) = (noise(60_000, 1), noise(60_000, 2));
    let [base_name, far_name] = [Digest::of(&base), Digest::of(&far)];
    for object in [&base, &far] {
        assert!(client.put(&own, &pack::build([object], Some(3)).unwrap().0).await.unwrap());
    }
    let deltas = pack::header_with_deltas();
    let new = like(&base, 1);
    assert!(client.put(&own, &delta_pack(&[&new], &[base_name], &base, deltas)).await.unwrap());
    assert!(!client.lacks(&own, &new).await);

    let object = like(&base, 2);
    let self_name = Digest::of(&object);
    let both = [&base[..], &far].concat();
    for (pack, code, why) in [
        (delta_pack(&[&object], &[Digest::of(b"nowhere")], &base, deltas), "BASES_MISSING", "what it needs is nowhere"),
        (delta_pack(&[&object], &[self_name], &object, deltas), "BASES_MISSING", "it needs itself"),
        (delta_pack(&[&object], &[Digest::of(&new)], &new, deltas), "BASES_MISSING", "it needs what is itself a delta"),
        (delta_pack(&[&object], &[base_name, far_name], &both, deltas), "BASES_MISSING", "it needs two packs"),
        (delta_pack(&[&object], &[base_name], &base, pack::header()), "PACK_INVALID", "its header says that there is none"),
        (delta_pack(&[&like(&far, 3)], &[base_name], &far, deltas), "PACK_INVALID", "it was made with other bases"),
    ] {
        Client::refused(client.put(&own, &pack).await, code, why);
        assert!(client.lacks(&own, &object).await, "{why}");
    }
    // In another namespace, what this one has is as good as nowhere; nothing tells them apart.
    let pack = delta_pack(&[&object], &[base_name], &base, deltas);
    Client::refused(client.put(&other, &pack).await, "BASES_MISSING", "another namespace");
    let groups = [vec![base_name], vec![Digest::of(b"nowhere")], vec![base_name, far_name], vec![Digest::of(&new)]];
    assert_eq!(client.registry.takes_bases(&own, &groups).await.unwrap(), Some(vec![true, false, false, false]));
    assert_eq!(client.registry.takes_bases(&other, &groups).await.unwrap(), Some(vec![false; 4]));

    // Who offers nothing, as older clients do, gets a plain frame.
    let stream = client.registry.objects(&own, vec![Digest::of(&new)], None, true).await.unwrap();
    let plain = client.frames(stream).await;
    assert!(plain.iter().all(|frame| Frame::decode(frame).unwrap().object(0) == Some(&new[..])) && plain.len() == 1);
    // Who has it gets the delta frame as it is stored.
    let ask = async |bases: Vec<Digest>| {
        let group = WantedGroup { first: 0, count: 1, bases };
        let stream = client.registry.objects_like(&own, &[Digest::of(&new)], &[group]).await.unwrap().unwrap();
        client.frames(stream).await
    };
    let sent = ask(vec![base_name]).await;
    assert_eq!(delta::bases(&sent[0]).unwrap(), [base_name]);
    assert!(sent[0].len() * 10 < plain[0].len() && Frame::decode_delta(&sent[0], &base).unwrap().object(0) == Some(&new[..]));
    // What cannot be had, or is no help, is not compressed against.
    for bases in [vec![Digest::of(b"nowhere")], vec![far_name], vec![base_name, Digest::of(b"nowhere"), Digest::of(b"here")]] {
        let sent = ask(bases.clone()).await;
        let frame = match delta::bases(&sent[0]).unwrap()[..] {
            [] => Frame::decode(&sent[0]),
            _ => Frame::decode_delta(&sent[0], &base),
        };
        assert_eq!(frame.unwrap().object(0), Some(&new[..]), "{bases:?}");
    }
    // What is stored plain is compressed against what is offered.
    let plain_new = like(&far, 9);
    assert!(client.put(&own, &pack::build([&plain_new], Some(3)).unwrap().0).await.unwrap());
    let group = WantedGroup { first: 0, count: 1, bases: vec![far_name] };
    let stream = client.registry.objects_like(&own, &[Digest::of(&plain_new)], &[group]).await.unwrap().unwrap();
    let sent = client.frames(stream).await;
    assert!(sent[0].len() < 10_000 && Frame::decode_delta(&sent[0], &far).unwrap().object(0) == Some(&plain_new[..]));
}

//! Writes the fuzz corpus: for each target a few valid samples. `cargo run -p layer-format --example write_corpus`.
//!
//! Adds files and never changes one: a file is named by what it holds. Findings of a fuzzer are added by hand.

use std::error::Error;
use std::path::Path;

use layer_format::api::{HaveFilter, Record, WantedGroup, encode_bases, encode_digests, encode_wanted};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, HardLink, Kind, Meta};
use layer_format::frame::FrameBuilder;
use layer_format::manifest::{
    AttributeRule, Attributes, Condition, EnvMode, EnvVar, FileMode, FileRule, ImageManifest, IsolationRule, LayerManifest, Manifest, Mode, StartupFile,
    StateImage, StateManifest,
};
use layer_format::model::{EntryPoint, LaunchItem, Model, State, Transition, Variant};
use layer_format::oci::{Algorithm, Descriptor, OciDigest, OciManifest, Platform, media};
use layer_format::rebuild::{Container, Plan, Rebuild, Section};
use layer_format::recipe::{Extent, NodeRef, Recipe};
use layer_format::recording::{Arrival, Class, Estimate, Mark, MarkKind, Process, Recording, Request, Timeline, Totals, Wait};
use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::tree::{Child, Node};
use layer_format::{Digest, LayerPath, pack};

fn main() -> Result<(), Box<dyn Error>> {
    let digest = Digest::of(b"sample");
    let path = |text: &str| LayerPath::new(text);
    let meta = Meta {
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        mtime_s: -1,
        mtime_ns: 5,
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
        hard_link: Some(HardLink { group: 9, count: 2 }),
    };
    let extents = Recipe::Extents(vec![Extent::Data(ChunkRef { digest, len: 4096 }), Extent::Hole(1 << 20)]);
    let nodes = Recipe::Nodes { level: 0, nodes: vec![NodeRef { digest, len: 9_000_000 }; 3] };
    let kinds = [
        Kind::Directory { opaque: false },
        Kind::Directory { opaque: true },
        Kind::File(extents.clone()),
        Kind::File(nodes.clone()),
        Kind::Symlink(b"../target".to_vec()),
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice { major: 1, minor: 3 },
        Kind::BlockDevice { major: 8, minor: 0 },
        Kind::Whiteout,
    ];
    let mut entries = vec![Entry { path: LayerPath::root(), meta: Meta { mode: 0o755, ..Meta::default() }, kind: Kind::Directory { opaque: false } }];
    for (at, kind) in kinds.into_iter().enumerate() {
        entries.push(Entry { path: path(&format!("usr/share/entry-{at}"))?, meta: meta.clone(), kind });
    }
    save("tree", &Node::Leaf(entries).encode())?;
    let children = vec![Child { first: LayerPath::root(), digest, entries: 64 }, Child { first: path("usr/lib")?, digest, entries: 7 }];
    save("tree", &Node::Index { level: 2, children }.encode())?;
    save("recipe", &extents.encode_node())?;
    save("recipe", &nodes.encode_node())?;
    let objects = [b"first".to_vec(), vec![7; 5000], Vec::new()];
    for level in [None, Some(3)] {
        let mut frame = FrameBuilder::new();
        for object in &objects {
            frame.push(object)?;
        }
        let mut compressor = zstd::bulk::Compressor::new(level.unwrap_or(1))?;
        save("frame", &frame.finish(level.map(|_| &mut compressor)))?;
        save("pack", &pack::build(&objects, level)?.0)?;
    }
    let base = b"the quick brown fox jumps over the lazy dog, and then sleeps";
    let mut frame = FrameBuilder::new();
    for object in [&b"the quick brown fox jumps over the lazy cat, and then sleeps"[..], b""] {
        frame.push(object)?;
    }
    let delta = frame.encode_delta(3, &[Digest::of(base)], base).ok_or("no delta frame")?;
    save("frame", &delta)?;
    save("pack", &with_deltas(&delta)?)?;
    let mut layer = LayerManifest::new(digest, 3, 99);
    layer.isolation.push(IsolationRule { path: "/opt".into(), mode: Mode::Full });
    layer.environment.push(EnvVar { name: "PATH".into(), value: "/opt/bin".into(), merge: layer_format::manifest::EnvMerge::Prepend });
    save("layer", &layer.encode()?)?;
    layer.files.push(FileRule { path: "/etc/app.conf".into(), mode: FileMode::Hide });
    layer.attributes.push(AttributeRule { path: "/opt/data".into(), attributes: Attributes { no_sync: true, ..Attributes::default() } });
    layer.environment_isolation.variables.insert("SECRET".into(), EnvMode::Full);
    layer.condition = Some(Condition::Not(Box::new(Condition::Any(vec![Condition::Host("kernel:>=6.1".into())]))));
    save("layer", &layer.with_features().encode()?)?;
    let mut image = ImageManifest::new("x86_64", vec![digest]);
    image.startup_files.push(StartupFile { command: vec!["/bin/app".into()], trigger: Some("serve".into()) });
    image.metadata.insert("title".into(), "Sample".into());
    save("image", &image.encode()?)?;
    let mut state = StateManifest::new(vec![StateImage { reference: "tools/app:1".into(), digest, dependency: true }], digest);
    state.settings.environment.insert("A".into(), "1".into());
    save("state", &state.encode()?)?;
    for reference in ["tools/scipy:1.0", "a/b@b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "x#abcd"] {
        save("reference", reference.as_bytes())?;
    }
    let oci = OciDigest::new(Algorithm::Sha256, &[7; 32]).ok_or("a hash of 32 bytes")?;
    let described = |media_type: &str| Descriptor { annotations: Some([("a".into(), "b".into())].into()), ..Descriptor::new(media_type, oci.clone(), 9) };
    let image = OciManifest {
        schema_version: Some(2),
        config: Some(described(media::CONFIG)),
        layers: Some(vec![described(media::LAYER_TAR)]),
        subject: Some(described(media::MANIFEST)),
        ..OciManifest::default()
    };
    save("oci", &serde_json::to_vec(&image)?)?;
    let platform = Platform { architecture: "arm64".into(), os: "linux".into(), variant: Some("v8".into()) };
    let listed = Descriptor { platform: Some(platform), ..described(media::MANIFEST) };
    let index = OciManifest { schema_version: Some(2), media_type: Some(media::INDEX.into()), manifests: Some(vec![listed]), ..OciManifest::default() };
    save("oci", &serde_json::to_vec(&index)?)?;
    save(
        "oci",
        br#"{"architecture":"amd64","os":"linux","config":{"User":"1","Env":["A=b","=","c"],"Entrypoint":["/a"],"Cmd":["b"],"WorkingDir":"/w/","Labels":{"l":"v"}}}"#,
    )?;
    save("oci", oci.as_str().as_bytes())?;
    let section = Section { plain_len: 3000, framing_len: 1024, pieces_len: 4, corrections_len: 9, packed_bits: 8 * 700, ..Section::default() };
    let plan = Plan { sections: vec![section] }.encode();
    let head = Rebuild { container: Container::Gzip { version: 1 }, content_len: 1976, framing_len: 1024, side_len: 13, plan_len: plan.len() as u64 };
    save("rebuild", &head.encode())?;
    save("rebuild", &plan)?;
    let event = |time_us, touch| Event { time_us, process: 1, layer: 0, path: 0, touch, source: Source::Missed };
    let events = vec![event(5, Touch::Meta), event(9, Touch::Data { bucket: 300 })];
    let trace = Trace { image: digest, entry_point: "app".into(), architecture: "x86_64".into(), duration_us: 70, paths: vec![path("bin/app")?], events };
    save("trace", &trace.encode())?;
    save("recording", &Recording { trace, timeline: Some(timeline(path("bin/app")?)) }.encode())?;
    let states = vec![State { layer: 0, path: 0, touch: Touch::Meta }, State { layer: 0, path: 0, touch: Touch::Data { bucket: 1 } }];
    let launch = vec![LaunchItem { state: 0, count: 1.0, time_us: 5 }, LaunchItem { state: 1, count: 0.5, time_us: 3 }];
    let other = Variant { weight: 0.5, launches: 1, launch: vec![LaunchItem { state: 0, count: 0.5, time_us: 7 }] };
    let variants = vec![Variant { weight: 1.0, launches: 1, launch }, other];
    let entry_points = vec![EntryPoint { name: "app".into(), architecture: "x86_64".into(), launches: 2, variants }];
    let step = Transition { before: 0, from: 0, to: 1, count: 1.0, gap_us: 10 };
    let model = Model {
        image: Some(digest),
        traces: 2,
        paths: vec![path("bin/app")?],
        states,
        entry_points,
        order1: vec![step],
        order2: vec![Transition { before: 1, ..step }],
    };
    save("model", &model.encode())?;
    let mut filter = HaveFilter::for_count(1);
    filter.insert(&digest);
    save("api", filter.to_hex().as_bytes())?;
    save("api", &encode_digests(&[digest]))?;
    save("api", &encode_bases(&[vec![digest], vec![digest; 2]]))?;
    save("api", &encode_wanted(&[digest], &[WantedGroup { first: 0, count: 1, bases: vec![digest] }]))?;
    for record in [Record::Object(b"bytes"), Record::Missing(digest), Record::Plan(&[1; 16]), Record::End(b"too long")] {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        save("api", &bytes)?;
    }
    Ok(())
}

fn timeline(path: LayerPath) -> Timeline {
    Timeline {
        total_us: 90,
        trace_start_us: 20,
        totals: Totals { received_bytes: 6000, wasted_bytes: 50, local_bytes: 1 },
        marks: vec![Mark { time_us: 20, kind: MarkKind::Manifest }, Mark { time_us: 80, kind: MarkKind::Exited }],
        processes: vec![
            Process { start_us: 25, parent: None, is_thread: false, name: "sh".into() },
            Process { start_us: 30, parent: Some(0), is_thread: true, name: "app".into() },
        ],
        trace_processes: vec![0, 1],
        sizes: vec![4096, 300],
        paths: vec![path],
        waits: vec![Wait { start_us: 25, duration_us: 4, process: Some(1), path: Some(0), touch: Touch::Meta, objects: 1, is_promoted: true }],
        requests: vec![Request { start_us: 1, first_byte_us: Some(9), duration_us: 40, class: Class::Launch, bytes: 6000, objects: 0 }],
        arrivals: vec![Arrival { slot: 0, class: Class::Launch, bytes: 6000 }],
        estimates: vec![Estimate { time_us: 10, round_trip_us: 9, bytes_per_s: 1_000_000 }],
    }
}

fn save(target: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(Digest::of(bytes).short()), bytes)?;
    Ok(())
}

/// A pack of one delta frame of the two objects above.
fn with_deltas(frame: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let objects = [&b"the quick brown fox jumps over the lazy cat, and then sleeps"[..], b""];
    let mut builder = pack::PackBuilder::new();
    builder.push(frame, &objects.map(|object| (Digest::of(object), object.len() as u32)))?;
    Ok([&pack::header_with_deltas(), frame, &builder.finish().0].concat())
}

//! One entry point for each parser, for fuzzers and for the saved corpus of the test command.
//!
//! Each takes any bytes, must return without panicking, and checks that what was accepted encodes to bytes that are
//! accepted again and mean the same.

use crate::api::{HaveFilter, PieceHeader, RECORD_HEADER_LEN, Record, decode_bases, decode_bitmap, decode_digests, decode_wanted, encode_bases, encode_wanted};
use crate::frame::{Frame, delta};
use crate::manifest::{ImageManifest, LayerManifest, Manifest, StateManifest};
use crate::model::Model;
use crate::oci::{ImageConfig, OciDigest, OciManifest};
use crate::pack;
use crate::rebuild::{Container, Plan, Rebuild, decode_pieces};
use crate::recipe::Recipe;
use crate::recording::Recording;
use crate::reference::ImageReference;
use crate::trace::Trace;
use crate::tree::Node;

/// An entry point: takes any bytes.
pub type Target = fn(&[u8]);

/// All entry points, by name.
pub const TARGETS: [(&str, Target); 14] = [
    ("tree", tree),
    ("recipe", recipe),
    ("frame", frame),
    ("pack", pack),
    ("layer", layer),
    ("image", image),
    ("state", state),
    ("reference", reference),
    ("trace", trace),
    ("model", model),
    ("recording", recording),
    ("api", api),
    ("oci", oci),
    ("rebuild", rebuild),
];

fn tree(bytes: &[u8]) {
    if let Ok(node) = Node::decode(bytes) {
        assert_eq!(Node::decode(&node.encode()), Ok(node), "a tree node comes back");
    }
}

fn recipe(bytes: &[u8]) {
    if let Ok(recipe) = Recipe::decode_node(bytes) {
        assert_eq!(recipe.encode_node(), bytes, "a recipe has one encoding");
    }
}

fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(frame.objects().map(<[u8]>::len).sum::<usize>(), frame.len(), "objects fill a frame");
        assert_eq!(delta::bases(bytes), Ok(Vec::new()), "a plain frame has no bases");
    }
    // The prefix of the sample in the corpus.
    let prefix = b"the quick brown fox jumps over the lazy dog, and then sleeps";
    if let Ok(frame) = Frame::decode_delta(bytes, prefix) {
        assert_eq!(frame.objects().map(<[u8]>::len).sum::<usize>(), frame.len(), "objects fill a frame");
        assert!(delta::bases(bytes).is_ok(), "what decodes says what its bases are");
    }
}

fn pack(bytes: &[u8]) {
    if let Ok(index) = pack::read_index(bytes) {
        for object in &index.objects {
            assert!(index.frames.get(object.frame as usize).is_some(), "an object lies in a frame");
        }
    }
}

fn layer(bytes: &[u8]) {
    if let Ok(layer) = LayerManifest::decode(bytes) {
        assert_eq!(layer.encode().and_then(|bytes| LayerManifest::decode(&bytes)), Ok(layer), "a layer comes back");
    }
}

fn image(bytes: &[u8]) {
    if let Ok(image) = ImageManifest::decode(bytes) {
        assert_eq!(image.encode().and_then(|bytes| ImageManifest::decode(&bytes)), Ok(image), "an image comes back");
    }
}

fn state(bytes: &[u8]) {
    if let Ok(state) = StateManifest::decode(bytes) {
        assert_eq!(state.encode().and_then(|bytes| StateManifest::decode(&bytes)), Ok(state), "a state comes back");
    }
}

fn reference(bytes: &[u8]) {
    if let Ok(reference) = String::from_utf8_lossy(bytes).parse::<ImageReference>() {
        assert_eq!(reference.to_string().parse(), Ok(reference), "a reference comes back");
    }
}

fn trace(bytes: &[u8]) {
    if let Ok(trace) = Trace::decode(bytes) {
        assert_eq!(Trace::decode(&trace.encode()), Ok(trace), "a trace comes back");
    }
}

fn model(bytes: &[u8]) {
    if let Ok(model) = Model::decode(bytes) {
        assert_eq!(Model::decode(&model.encode()), Ok(model), "a model comes back");
    }
}

fn recording(bytes: &[u8]) {
    if let Ok(recording) = Recording::decode(bytes) {
        assert_eq!(Recording::decode(&recording.encode()), Ok(recording), "a recording comes back");
    }
}

fn oci(bytes: &[u8]) {
    if let Ok((manifest, media_type, _)) = OciManifest::decode(bytes, None) {
        let again = serde_json::to_vec(&manifest).unwrap_or_default();
        assert_eq!(OciManifest::decode(&again, Some(&media_type)).map(|(manifest, ..)| manifest), Ok(manifest), "a manifest comes back");
    }
    if let Ok(config) = ImageConfig::decode(bytes) {
        let (image, layers) = config.stated(&[(crate::Digest::of(b"root"), 1, 0)], "fuzz");
        assert!(image.encode().is_ok() && layers.iter().all(|layer| layer.encode().is_ok()), "what a configuration states is valid");
    }
    if let Ok(digest) = String::from_utf8_lossy(bytes).parse::<OciDigest>() {
        assert_eq!(digest.hex().len(), 2 * digest.algorithm().output_len(), "a digest has its length");
    }
}

fn api(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk()
        && let Ok(piece) = PieceHeader::decode(*header)
    {
        assert_eq!(piece.encode(), *header, "a piece's header has one encoding");
    }
    let _ = decode_digests(bytes);
    if let Ok((wanted, groups)) = decode_wanted(bytes) {
        assert_eq!(encode_wanted(&wanted, &groups), bytes, "a list of wanted objects has one encoding");
    }
    if let Ok(groups) = decode_bases(bytes) {
        assert_eq!(encode_bases(&groups), bytes, "a list of bases has one encoding");
    }
    let _ = decode_bitmap(bytes, 64);
    let _ = HaveFilter::from_hex(&String::from_utf8_lossy(bytes));
    let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEADER_LEN>() else { return };
    if let Ok((kind, len)) = Record::decode_header(*head)
        && let Some(payload) = rest.get(..len)
        && let Ok(record) = Record::decode(kind, payload)
    {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again[RECORD_HEADER_LEN..], *payload, "a record comes back");
    }
}

fn rebuild(bytes: &[u8]) {
    if let Ok(head) = Rebuild::decode(bytes) {
        assert_eq!(Rebuild::decode(&head.encode()), Ok(head), "a rebuild comes back");
    }
    let head = Rebuild { container: Container::Plain, content_len: 0, framing_len: 0, side_len: 0, plan_len: 0 };
    if let Ok(plan) = Plan::decode(bytes, &head) {
        assert_eq!(Plan::decode(&plan.encode(), &head), Ok(plan.clone()), "a plan comes back");
        for section in &plan.sections {
            let _ = decode_pieces(bytes, section);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Valid samples with a few bytes changed get further into a parser than noise does.
        #[test]
        fn nothing_panics_on_changed_samples(which in 0usize..TARGETS.len(), sample: proptest::sample::Index, edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6), cut: Option<proptest::sample::Index>) {
            let samples = samples();
            let mut bytes = sample.get(&samples).clone();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            TARGETS[which].1(&bytes);
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }

        #[test]
        fn nothing_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }

    fn samples() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
        let mut samples: Vec<Vec<u8>> = walk(folder.as_ref()).iter().map(|file| std::fs::read(file).unwrap()).filter(|bytes| !bytes.is_empty()).collect();
        samples.sort();
        assert!(samples.len() >= TARGETS.len(), "the corpus is there");
        samples
    }

    fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_target_has_a_corpus_and_passes_it() {
        for (name, target) in TARGETS {
            let files = walk(&std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).join(name));
            assert!(!files.is_empty(), "{name}");
            for file in files {
                target(&std::fs::read(file).unwrap());
            }
        }
    }
}

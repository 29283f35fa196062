//! What travels for a touch: the objects that answer for each place of an image, and how large each is on the wire.
//!
//! A place is not an object. A bucket is made of the chunks that overlap it, neighbours share one, and a chunk that two
//! files have in common travels once; the entry of a path is in a tree object with many others. So a simulation that
//! counts bytes counts objects.
//!
//! Sizes on the wire depend on what was sent before in the same compression stream. Whoever makes a [`Travel`] takes one
//! order, that of a recorded run, and apportions what the stream came to.
//!
//! # Format
//! Magic `TBTV`, version 1. Varints, but for the layer, which is a byte:
//! * the number of objects; of each its bytes on the wire and its plain bytes;
//! * the number of files; of each the layer, the length and the bytes of the path, the objects that lead to its entry,
//!   the number of its buckets, and the objects of each bucket. A list of objects is their number and, for each, the
//!   difference to the number of the object named before it in the file (signed: zigzag).

use std::collections::HashMap;

use layer_format::codec::{FormatError, Reader, Writer};
use layer_format::trace::Touch;
use layer_format::{Digest, LayerPath};

const MAGIC: &[u8; 4] = b"TBTV";
const VERSION: u8 = 1;
/// Most objects, files and buckets: a damaged count allocates no more than that.
const MAX_COUNT: u64 = 1 << 22;
/// Most objects of one place.
const MAX_OBJECTS: u64 = 1 << 12;
/// Most bytes of a path.
const MAX_PATH_LEN: usize = 4096;

/// Something that can be touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which layer of the image.
    pub layer: u8,
    /// Path in the layer.
    pub path: LayerPath,
    /// What of it.
    pub touch: Touch,
}

/// An object that travels: a chunk, or a node of a tree or of a recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Its share of the compressed stream, in bytes.
    pub wire_bytes: u32,
    /// Its length.
    pub plain_bytes: u32,
}

/// The objects of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    /// Those that lead to its entry, from the root.
    way: Vec<u32>,
    /// Those of all buckets, one after the other.
    content: Vec<u32>,
    /// Where each bucket's begin in `content`, and the end.
    starts: Vec<u32>,
}

/// What travels for the places of an image: of all paths that any recorded run touched, all buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Travel {
    objects: Vec<Object>,
    files: HashMap<(u8, LayerPath), Objects>,
    /// See [`Travel::index`].
    leaves: Vec<(u8, LayerPath)>,
}

impl Travel {
    /// All objects; others are named by their position here.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// An object; one without bytes if there is none of that number.
    pub fn object(&self, number: u32) -> Object {
        self.objects.get(number as usize).copied().unwrap_or_default()
    }

    /// The objects that answer for a place, in the order in which they are needed. Empty if the image has no such place
    /// or no recorded run touched the path.
    pub fn needed<'a>(&'a self, place: &Place) -> impl Iterator<Item = u32> + 'a {
        let file = self.files.get(&(place.layer, place.path.clone()));
        let content = match (file, place.touch) {
            (Some(file), Touch::Data { bucket }) => file.bucket(bucket),
            _ => &[],
        };
        // Content that is not there, behind the end of a file, leads nowhere.
        let way = file.filter(|_| place.touch == Touch::Meta || !content.is_empty()).map_or(&[][..], |file| &file.way);
        way.iter().chain(content).copied()
    }

    /// Number of buckets of a path's content; 0 if it has none.
    pub fn buckets(&self, layer: u8, path: &LayerPath) -> u32 {
        self.files.get(&(layer, path.clone())).map_or(0, |file| file.starts.len().saturating_sub(1) as u32)
    }

    /// Paths behind a place in the tree's order, each with another entry's tree object than the one before: asking for their
    /// entries brings the tree objects that follow. At most so many.
    pub fn next_entries(&self, place: &Place, count: usize) -> Vec<Place> {
        let leaf = |layer: u8, path: &LayerPath| self.files.get(&(layer, path.clone())).and_then(|file| file.way.last().copied());
        let at = self.leaves.binary_search_by(|(layer, path)| (*layer, path).cmp(&(place.layer, &place.path))).map_or_else(|at| at, |at| at + 1);
        let own = leaf(place.layer, &place.path);
        let behind = self.leaves[at.min(self.leaves.len())..].iter().filter(|(layer, path)| *layer == place.layer && leaf(*layer, path) != own);
        behind.take(count).map(|(layer, path)| Place { layer: *layer, path: path.clone(), touch: Touch::Meta }).collect()
    }

    /// The first path of each leaf of the trees, in order.
    fn index(&mut self) {
        let mut all: Vec<_> = self.files.iter().map(|(key, file)| (key, file.way.last())).collect();
        all.sort_unstable();
        all.dedup_by_key(|(key, leaf)| (key.0, *leaf));
        self.leaves = all.into_iter().map(|(key, _)| key.clone()).collect();
    }

    /// Its bytes, uncompressed: see the module.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.put_varint(self.objects.len() as u64);
        for object in &self.objects {
            out.put_varint(object.wire_bytes.into());
            out.put_varint(object.plain_bytes.into());
        }
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|(key, _)| *key);
        out.put_varint(files.len() as u64);
        for ((layer, path), file) in files {
            out.push(*layer);
            out.put_sized(path.as_bytes());
            let mut last = 0;
            put_list(&mut out, &file.way, &mut last);
            out.put_varint(file.starts.len().saturating_sub(1) as u64);
            for bucket in file.starts.windows(2) {
                put_list(&mut out, &file.content[bucket[0] as usize..bucket[1] as usize], &mut last);
            }
        }
        out
    }

    /// Parses what [`Travel::encode`] made.
    ///
    /// # Errors
    /// If the bytes are not that, or a bound is exceeded.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("sizes", bytes);
        reader.header(MAGIC, VERSION)?;
        let count = reader.count(MAX_COUNT, 2)?;
        let mut objects = Vec::with_capacity(count);
        for _ in 0..count {
            let (wire_bytes, plain_bytes) = (reader.varint(u32::MAX.into())? as u32, reader.varint(u32::MAX.into())? as u32);
            objects.push(Object { wire_bytes, plain_bytes });
        }
        let count = reader.count(MAX_COUNT, 4)?;
        let mut files = HashMap::with_capacity(count);
        for _ in 0..count {
            let layer = reader.u8()?;
            let path = LayerPath::new(reader.sized(MAX_PATH_LEN)?)?;
            let mut file = Objects::default();
            let mut last = 0;
            read_list(&mut reader, objects.len(), &mut last, &mut file.way)?;
            let buckets = reader.count(MAX_COUNT, 1)?;
            file.starts.reserve(buckets + 1);
            file.starts.push(0);
            for _ in 0..buckets {
                read_list(&mut reader, objects.len(), &mut last, &mut file.content)?;
                file.starts.push(file.content.len() as u32);
            }
            files.insert((layer, path), file);
        }
        reader.finish()?;
        let mut travel = Self { objects, files, leaves: Vec::new() };
        travel.index();
        Ok(travel)
    }
}

impl Objects {
    fn bucket(&self, bucket: u32) -> &[u32] {
        let at = bucket as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(start), Some(end)) => &self.content[*start as usize..*end as usize],
            _ => &[],
        }
    }
}

fn put_list(out: &mut Vec<u8>, list: &[u32], last: &mut u32) {
    out.put_varint(list.len() as u64);
    for number in list {
        out.put_signed(i64::from(*number) - i64::from(*last));
        *last = *number;
    }
}

fn read_list(reader: &mut Reader<'_>, objects: usize, last: &mut u32, list: &mut Vec<u32>) -> Result<(), FormatError> {
    let count = reader.count(MAX_OBJECTS, 1)?;
    for _ in 0..count {
        let number = i64::from(*last).checked_add(reader.signed()?).and_then(|number| u32::try_from(number).ok());
        *last = number.filter(|number| (*number as usize) < objects).ok_or(FormatError::Invalid { what: "sizes", rule: "there is no such object" })?;
        list.push(*last);
    }
    Ok(())
}

/// Makes a [`Travel`]: numbers objects in the order in which they are first named.
#[derive(Debug, Default)]
pub struct TravelBuilder {
    numbers: HashMap<Digest, u32>,
    digests: Vec<Digest>,
    files: HashMap<(u8, LayerPath), Objects>,
}

impl TravelBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the path was added.
    pub fn has(&self, layer: u8, path: &LayerPath) -> bool {
        self.files.contains_key(&(layer, path.clone()))
    }

    /// Adds a path: the objects on the way to its entry, and those of each of its buckets.
    pub fn add(&mut self, layer: u8, path: LayerPath, way: &[Digest], buckets: &[Vec<Digest>]) {
        let mut file = Objects { way: self.number(way), content: Vec::new(), starts: vec![0] };
        for bucket in buckets {
            let numbers = self.number(bucket);
            file.content.extend(numbers);
            file.starts.push(file.content.len() as u32);
        }
        self.files.insert((layer, path), file);
    }

    /// All objects by number.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// With the size of each object, by number; what has none takes no bytes.
    pub fn finish(self, mut sizes: Vec<Object>) -> Travel {
        sizes.resize(self.digests.len(), Object::default());
        let mut travel = Travel { objects: sizes, files: self.files, leaves: Vec::new() };
        travel.index();
        travel
    }

    /// With a first guess of the sizes, to find out what places need before the sizes are known.
    pub fn preview(&self) -> Travel {
        Travel { objects: vec![Object::default(); self.digests.len()], files: self.files.clone(), leaves: Vec::new() }
    }

    fn number(&mut self, digests: &[Digest]) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(digests.len());
        for digest in digests {
            let next = self.digests.len() as u32;
            let number = *self.numbers.entry(*digest).or_insert(next);
            if number == next {
                self.digests.push(*digest);
            }
            numbers.push(number);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(path: &str, touch: Touch) -> Place {
        Place { layer: 0, path: LayerPath::new(path).unwrap(), touch }
    }

    fn sample() -> Travel {
        let digest = |n: u8| Digest::of(&[n]);
        let mut builder = TravelBuilder::new();
        builder.add(0, LayerPath::new("bin/app").unwrap(), &[digest(0), digest(1)], &[vec![digest(2), digest(3)], vec![digest(3)]]);
        builder.add(0, LayerPath::new("lib/a").unwrap(), &[digest(0), digest(4)], &[vec![digest(2)]]);
        builder.finish((1..=5).map(|n| Object { wire_bytes: 100 * n, plain_bytes: 300 * n }).collect())
    }

    #[test]
    fn a_place_needs_the_way_to_it_and_its_chunks() {
        let travel = sample();
        let needed = |path, touch| travel.needed(&place(path, touch)).collect::<Vec<_>>();
        assert_eq!(needed("bin/app", Touch::Meta), [0, 1]);
        assert_eq!(needed("bin/app", Touch::Data { bucket: 0 }), [0, 1, 2, 3]);
        assert_eq!(needed("bin/app", Touch::Data { bucket: 1 }), [0, 1, 3]);
        assert_eq!(needed("lib/a", Touch::Data { bucket: 0 }), [0, 4, 2]);
        assert!(needed("bin/app", Touch::Data { bucket: 2 }).is_empty() && needed("none", Touch::Meta).is_empty());
        let next = travel.next_entries(&place("bin/app", Touch::Meta), 3);
        assert_eq!(next, [place("lib/a", Touch::Meta)]);
        assert!(travel.next_entries(&next[0], 3).is_empty());
        assert_eq!((travel.buckets(0, &LayerPath::new("bin/app").unwrap()), travel.object(4).plain_bytes, travel.object(9).wire_bytes), (2, 1500, 0));
    }

    #[test]
    fn comes_back_from_its_bytes_and_no_cut_of_them_is_taken() {
        let bytes = sample().encode();
        assert_eq!(Travel::decode(&bytes), Ok(sample()));
        assert!((0..bytes.len()).all(|len| Travel::decode(&bytes[..len]).is_err()));
        assert!(Travel::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn damaged_bytes_give_an_error_or_something_whose_objects_exist(at in 0usize..200, to: u8) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(travel) = Travel::decode(&bytes) {
                for ((layer, path), file) in &travel.files {
                    for bucket in 0..file.starts.len() as u32 {
                        let place = Place { layer: *layer, path: path.clone(), touch: Touch::Data { bucket } };
                        prop_assert!(travel.needed(&place).all(|number| (number as usize) < travel.objects.len()));
                    }
                }
            }
        }
    }
}

//! Objects compressed against others that the client says it has.
//!
//! A stored delta frame goes out as it is if all of it is wanted and the client has what it needs. Of other frames, the wanted
//! objects of each group are compressed against the group's bases, if that is much less than what is stored. Bases are
//! objects of the same namespace like any others; what cannot be found or read of them is not compressed against.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use layer_format::Digest;
use layer_format::api::WantedGroup;
use layer_format::frame::delta::bases;
use layer_format::frame::{Codec, Frame, FrameBuilder, FrameHeader};

use super::frames::ReadError;
use super::objects::{Objects, verified};
use super::stream::{Item, StreamError, StreamWriter, Unit, by_frame, detached, load_frame, repack};
use crate::db::namespace::NamespaceId;
use crate::db::object::Location;

/// Frames that are worked on at a time: each takes some MiB while it is compressed.
const READ_AHEAD: usize = 4;
/// Most bytes of bases for the objects of one frame: groups may be as small as an object, and all may name the same bases.
const MAX_PREFIXES_LEN: usize = 4 << 20;
/// A delta is sent if it has at most this many percent of the bytes of what would be sent otherwise.
const DELTA_PERCENT: usize = 85;
/// Of objects of which there is no frame to compare with, a delta is compared with these many percent of their plain bytes.
const USUAL_PERCENT: usize = 40;

/// What the client said that it has.
struct Offer {
    namespace: NamespaceId,
    /// Which group a wanted object is in.
    group_of: HashMap<Digest, usize>,
    groups: Vec<WantedGroup>,
    /// All bases of all groups.
    has: HashSet<Digest>,
}

/// Sends objects as frames, in the order asked, like [`super::stream::send_frames`], those of the groups compressed against
/// their bases.
pub(crate) async fn send_like(
    writer: &mut StreamWriter,
    objects: &Objects,
    namespace: NamespaceId,
    digests: &[Digest],
    mut groups: Vec<WantedGroup>,
    level: i32,
) -> Result<(), StreamError> {
    for group in &mut groups {
        if !group.bases.iter().all(|base| objects.may_find(base)) {
            group.bases.clear();
        }
    }
    let mut group_of = HashMap::new();
    for (number, group) in groups.iter().enumerate() {
        let members = digests.get(group.first as usize..).unwrap_or_default().iter().take(group.count.into());
        group_of.extend(members.map(|digest| (*digest, number)));
    }
    let has = groups.iter().flat_map(|group| group.bases.iter().copied()).collect();
    let offer = Arc::new(Offer { namespace, group_of, groups, has });
    let units = by_frame(objects.locate(namespace, digests).await?, digests);
    let for_load = objects.clone();
    let load = move |unit| detached(load_like(for_load.clone(), Arc::clone(&offer), unit, level));
    let mut items = stream::iter(units).map(load).buffered(READ_AHEAD);
    while let Some(item) = items.next().await {
        writer.write(item?, false).await?;
    }
    Ok(())
}

async fn load_like(objects: Objects, offer: Arc<Offer>, unit: Unit, level: i32) -> Result<Vec<Item>, ReadError> {
    let Unit::Slots(place, slots) = &unit else { return load_frame(objects, unit, level).await };
    let place = *place;
    if !slots.iter().any(|(digest, _)| offer.group_of.contains_key(digest)) {
        return load_frame(objects, unit, level).await;
    }
    let encoded = match objects.frames.encoded(place).await {
        Ok(encoded) => encoded,
        // It says what is lost.
        Err(error) if error.is_loss() => return load_frame(objects, unit, level).await,
        Err(error) => return Err(error),
    };
    let head = encoded.as_ref().and_then(|encoded| FrameHeader::decode(encoded).ok());
    let whole = head.filter(|head| head.count == slots.len());
    if let (Some(encoded), Some(head)) = (&encoded, whole)
        && head.codec == Codec::Delta
        && bases(encoded).is_ok_and(|bases| bases.iter().all(|base| offer.has.contains(base)))
    {
        return Ok(vec![Item::Frame(encoded.clone())]);
    }
    // What would be sent otherwise.
    let plain = encoded.filter(|_| whole.is_some_and(|head| head.codec != Codec::Delta));
    let frame = match objects.frames.frame(place).await {
        Ok(frame) => frame,
        Err(error) if error.is_loss() => return load_frame(objects, unit, level).await,
        Err(error) => return Err(error),
    };
    let mut parts: Vec<Part> = Vec::new();
    for (digest, location) in slots {
        let group = offer.group_of.get(digest).copied();
        match parts.last_mut() {
            Some(part) if part.group == group => part.slots.push((*digest, *location)),
            _ => parts.push(Part { group, slots: vec![(*digest, *location)], prefix: None }),
        }
    }
    let mut room = MAX_PREFIXES_LEN;
    for part in &mut parts {
        let Some(group) = part.group.and_then(|number| offer.groups.get(number)).filter(|group| !group.bases.is_empty()) else { continue };
        part.prefix = match objects.frames.prefix(offer.namespace, &group.bases).await {
            Ok(prefix) if prefix.len() <= room => {
                room -= prefix.len();
                Some(prefix)
            }
            Ok(_) => break,
            Err(error) if error.is_loss() => None,
            Err(error) => return Err(error),
        };
    }
    let work = tokio::task::spawn_blocking(move || compress(&offer, &frame, parts, plain, level));
    work.await.map_err(|_| ReadError::Cancelled)
}

/// Wanted objects of one frame that are of one group.
struct Part {
    group: Option<usize>,
    slots: Vec<(Digest, Location)>,
    /// The bytes of the group's bases, if they could be had.
    prefix: Option<Vec<u8>>,
}

/// Compresses each part against its bases. If that is not worth it for the whole, the frame goes as it is stored.
fn compress(offer: &Offer, frame: &Frame, parts: Vec<Part>, plain: Option<Bytes>, level: i32) -> Vec<Item> {
    let (mut items, mut sent) = (Vec::new(), 0);
    for part in &parts {
        let group = part.group.and_then(|number| offer.groups.get(number));
        let delta = part.prefix.as_ref().zip(group).and_then(|(prefix, group)| {
            let mut builder = FrameBuilder::new();
            for (digest, location) in &part.slots {
                builder.push(verified(frame, location.slot, digest)?).ok()?;
            }
            let encoded = builder.encode_delta(level, &group.bases, prefix)?;
            let usual = builder.len() * USUAL_PERCENT / 100;
            (plain.is_some() || encoded.len() * 100 <= usual * DELTA_PERCENT).then_some(encoded)
        });
        match delta {
            Some(encoded) => {
                sent += encoded.len();
                items.push(Item::Frame(encoded.into()));
            }
            None => {
                let packed = repack(frame, &part.slots, level);
                sent += packed.iter().map(|item| if let Item::Frame(bytes) = item { bytes.len() } else { 0 }).sum::<usize>();
                items.extend(packed);
            }
        }
    }
    match plain {
        Some(plain) if sent * 100 > plain.len() * DELTA_PERCENT => vec![Item::Frame(plain)],
        _ => items,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::object::FramePlace;
    use crate::db::pack::PackId;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 5u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn what_is_like_its_bases_is_a_delta_and_what_is_not_stays_as_it_is_stored() {
        let (base, other) = (noise(60_000), vec![7; 30_000]);
        let mut builder = FrameBuilder::new();
        let objects = [base[100..30_000].to_vec(), base[20_000..50_000].to_vec()];
        objects.iter().for_each(|object| builder.push(object).unwrap());
        let stored = Bytes::from(builder.finish(None));
        let frame = Frame::decode(&stored).unwrap();
        let place = FramePlace { pack: PackId::of(1), offset: 16, len: stored.len() as u32 };
        let slots: Vec<_> =
            (0u16..).zip(&objects).map(|(slot, object)| (Digest::of(object), Location { frame: place, slot, len: object.len() as u32 })).collect();
        for (prefix, is_delta) in [(base, true), (other, false)] {
            let group = WantedGroup { first: 0, count: 2, bases: vec![Digest::of(&prefix)] };
            let offer = Offer { namespace: NamespaceId::of(1), group_of: HashMap::new(), groups: vec![group], has: HashSet::new() };
            let part = Part { group: Some(0), slots: slots.clone(), prefix: Some(prefix.clone()) };
            let items = compress(&offer, &frame, vec![part], Some(stored.clone()), 3);
            let [Item::Frame(sent)] = &items[..] else { panic!("{items:?}") };
            assert_eq!(!bases(sent).unwrap().is_empty(), is_delta);
            let back = if is_delta { Frame::decode_delta(sent, &prefix) } else { Frame::decode(sent) };
            assert_eq!(back.unwrap(), frame);
        }
    }
}

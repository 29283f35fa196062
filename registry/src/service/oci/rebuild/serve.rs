//! Makes a blob again: section by section, some at a time, each from its plain bytes and corrections. What was made lately is
//! kept for a while, since an image that is pushed is often pulled by many at once; who wants a section that is being made
//! waits for it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chunker::deflate::{self, Place, history_len};
use futures::{FutureExt, StreamExt, stream};
use layer_format::rebuild::{Container, Plan, Rebuild, Section, decode_pieces};
use layer_format::recipe::Recipe;
use layer_format::{Digest, FormatError};
use tokio::sync::mpsc;

use super::super::blob::Reader;
use super::Rebuilds;
use crate::service::frames::ReadError;

/// Sections that are made while one is being sent.
const READ_AHEAD: usize = 2;
/// Bytes that are sent together.
const PIECE_LEN: usize = 256 << 10;

/// What a blob is made of.
pub(super) struct Source {
    reader: Reader,
    recipe: Recipe,
    head: Rebuild,
    /// Names the blob among those that were made.
    name: Digest,
    rebuilds: Arc<Rebuilds>,
}

/// A section and where its parts begin.
#[derive(Clone, Copy, Debug)]
struct Placed {
    section: Section,
    /// Bits of the blob before it.
    bits: u64,
    /// Plain bytes before it.
    plain: u64,
    /// In what is stored.
    content: u64,
    framing: u64,
    side: u64,
}

impl Placed {
    /// Bytes of the blob: up to the one that the next section begins in.
    fn packed(&self) -> Range<u64> {
        self.bits / 8..(self.bits + self.section.packed_bits) / 8
    }

    fn pieces(&self) -> Range<u64> {
        self.side..self.side + u64::from(self.section.pieces_len)
    }
}

fn damaged(rule: &'static str) -> ReadError {
    ReadError::Damaged(FormatError::Invalid { what: "rebuild", rule })
}

impl Source {
    pub(super) fn new(reader: Reader, recipe: Recipe, head: Rebuild, rebuilds: Arc<Rebuilds>) -> Self {
        let name = Digest::of(&[head.encode(), recipe.encode_node()].concat());
        Self { reader, recipe, head, name, rebuilds }
    }

    /// Sends a part of the blob.
    pub(super) async fn send(self, range: Range<u64>, sender: &mpsc::Sender<Result<Bytes, ReadError>>) -> Result<(), ReadError> {
        if let Container::Gzip { version } = self.head.container
            && version != deflate::VERSION
        {
            return Err(damaged("its corrections are of this version"));
        }
        if self.head.len() != self.recipe.len() {
            return Err(damaged("its recipe is as long as it says"));
        }
        let sections = self.sections().await?;
        let first = sections.partition_point(|placed| placed.packed().end <= range.start);
        let after = sections.partition_point(|placed| placed.packed().start < range.end);
        let (source, sections) = (Arc::new(self), Arc::new(sections));
        let make = |at: usize| {
            let (source, sections) = (Arc::clone(&source), Arc::clone(&sections));
            // A task of its own, since others may wait for the same section, and this one for its client.
            let task = tokio::spawn(async move {
                let make = source.make(&sections, at);
                source.rebuilds.made.get_or_load((source.name, at as u32), |bytes| bytes.len() as u64, make).await
            });
            async move { task.await.map_err(|_| ReadError::Cancelled)? }.boxed()
        };
        let mut made = stream::iter((first..after).map(make)).buffered(READ_AHEAD);
        let mut at = first;
        while let Some(bytes) = made.next().await {
            let mut bytes = Bytes::clone(&*bytes?);
            let packed = sections[at].packed();
            let start = range.start.clamp(packed.start, packed.end) - packed.start;
            let end = range.end.clamp(packed.start, packed.end) - packed.start;
            let mut rest = bytes.split_to(end as usize).split_off(start as usize);
            while !rest.is_empty() {
                if sender.send_timeout(Ok(rest.split_to(PIECE_LEN.min(rest.len()))), super::super::blob::STALL).await.is_err() {
                    return Ok(());
                }
            }
            at += 1;
        }
        Ok(())
    }

    async fn sections(&self) -> Result<Vec<Placed>, ReadError> {
        let plan = self.reader.collect(&self.recipe, self.head.plan_range()).await?;
        let plan = Plan::decode(&plan, &self.head).map_err(ReadError::Damaged)?;
        let (mut bits, mut plain, mut content) = (0, 0, 0);
        let mut framing = self.head.content_len;
        let mut side = framing + self.head.framing_len;
        let place = |section: Section| {
            let placed = Placed { section, bits, plain, content, framing, side };
            bits += section.packed_bits;
            plain += u64::from(section.plain_len);
            content += u64::from(section.plain_len - section.framing_len);
            framing += u64::from(section.framing_len);
            side += u64::from(section.pieces_len) + u64::from(section.corrections_len);
            placed
        };
        Ok(plan.sections.into_iter().map(place).collect())
    }

    /// The bytes of a section.
    async fn make(&self, sections: &[Placed], at: usize) -> Result<Bytes, ReadError> {
        // Before anything is read, so that what waits takes no memory.
        let _turn = self.rebuilds.turns.acquire().await.map_err(|_| ReadError::Cancelled)?;
        let placed = sections[at];
        let section = placed.section;
        let place = Place { packed_bits: placed.bits, partial: section.partial, plain_len: section.plain_len, member_offset: section.member_offset };
        let history = match self.head.container {
            Container::Plain => 0,
            Container::Gzip { .. } => history_len(&place) as u64,
        };
        let from = placed.plain.checked_sub(history).ok_or_else(|| damaged("a member does not begin before the blob"))?;
        let mut plain = Vec::with_capacity((history + u64::from(section.plain_len)) as usize);
        let oldest = sections.partition_point(|other| other.plain + u64::from(other.section.plain_len) <= from).min(at);
        for other in &sections[oldest..=at] {
            self.plain(other, from.saturating_sub(other.plain), &mut plain).await?;
        }
        let packed = placed.packed();
        let packed_len = (packed.end - packed.start) as usize;
        let end = placed.pieces().end;
        let corrections = self.reader.collect(&self.recipe, end..end + u64::from(section.corrections_len)).await?;
        let container = self.head.container;
        let work = tokio::task::spawn_blocking(move || match container {
            Container::Plain => Ok(plain),
            Container::Gzip { .. } => deflate::rebuild(&place, &plain, &corrections, packed_len),
        });
        let made = work.await.map_err(|_| ReadError::Cancelled)?;
        let bytes = made.map_err(|error| {
            tracing::error!(error = crate::chain(&error), "a section of a blob cannot be made again");
            damaged("its sections can be made again")
        })?;
        match bytes.len() == packed_len {
            true => Ok(Bytes::from(bytes)),
            false => Err(damaged("its sections are as long as they were")),
        }
    }

    /// Appends the plain bytes of a section from `skip` on.
    async fn plain(&self, placed: &Placed, skip: u64, to: &mut Vec<u8>) -> Result<(), ReadError> {
        let pieces = self.reader.collect(&self.recipe, placed.pieces()).await?;
        let pieces = decode_pieces(&pieces, &placed.section).map_err(ReadError::Damaged)?;
        // What of both sides is before the bytes that are wanted.
        let (mut framing_skip, mut content_skip, mut left) = (0, 0, skip);
        for (framing, content) in &pieces {
            let (framing, content) = (u64::from(*framing).min(left), u64::from(*content).min(left.saturating_sub(u64::from(*framing))));
            framing_skip += framing;
            content_skip += content;
            left -= framing + content;
        }
        let section = placed.section;
        let framing = placed.framing + framing_skip..placed.framing + u64::from(section.framing_len);
        let content = placed.content + content_skip..placed.content + u64::from(section.plain_len - section.framing_len);
        let (framing, content) = futures::try_join!(self.reader.collect(&self.recipe, framing), self.reader.collect(&self.recipe, content))?;
        let (mut framing, mut content) = (&framing[..], &content[..]);
        let mut left = skip;
        for (framing_len, content_len) in pieces {
            for (rest, len) in [(&mut framing, framing_len), (&mut content, content_len)] {
                let skipped = u64::from(len).min(left);
                left -= skipped;
                let wanted = len as usize - skipped as usize;
                let (now, later) = rest.split_at_checked(wanted).ok_or_else(|| damaged("its pieces add up"))?;
                to.extend_from_slice(now);
                *rest = later;
            }
        }
        Ok(())
    }
}

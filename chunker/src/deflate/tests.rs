//! Whole streams: of real encoders, of one that chooses at random, and of none.

use std::io::Write;

use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::bits::BitWriter;
use super::header::Header;
use super::huffman::codes;
use super::inflate::fixed_lens;
use super::tables::{DISTANCE_CODES, LENGTH_CODES, distance_code, length_code};
use super::*;

/// Takes a stream apart and makes it again, sections last to first; returns the length of the corrections.
fn there_and_back(packed: &[u8]) -> Result<usize, AnalyzeError> {
    let mut analyzer = Analyzer::new(packed);
    let (mut plain, mut sections) = (Vec::new(), Vec::new());
    while let Some(section) = analyzer.next_section()? {
        plain.extend_from_slice(section.plain);
        assert_eq!(section.place.plain_len as usize, section.plain.len());
        sections.push((section.place, section.corrections, section.packed_end_bits, plain.len()));
    }
    let mut made = vec![Vec::new(); sections.len()];
    for (at, (place, corrections, end_bits, plain_end)) in sections.iter().enumerate().rev() {
        let from = plain_end - place.plain_len as usize - history_len(place);
        let packed_len = (end_bits / 8 - place.packed_bits / 8) as usize;
        made[at] = rebuild(place, &plain[from..*plain_end], corrections, packed_len).expect("what was just taken apart");
    }
    assert!(made.concat() == packed, "it comes back bit for bit");
    Ok(sections.iter().map(|(_, corrections, ..)| corrections.len()).sum())
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below.max(1)
    }
}

/// Bytes that compress like text: words from a small dictionary, some of them new.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut random = random(seed);
    let words: Vec<Vec<u8>> = (0..500).map(|_| (0..2 + random(9)).map(|_| b'a' + random(26) as u8).collect()).collect();
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        match random(20) {
            0 => out.extend((0..1 + random(40)).map(|_| random(256) as u8)),
            1 => out.extend(std::iter::repeat_n(random(256) as u8, random(400) as usize)),
            _ => out.extend_from_slice(&words[(random(500) * random(500) / 500) as usize]),
        }
        out.push(b' ');
    }
    out.truncate(len);
    out
}

fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// An encoder that cuts blocks and chooses kinds and matches at random.
fn random_encoder(plain: &[u8], seed: u64) -> Vec<u8> {
    let mut random = random(seed);
    let mut writer = BitWriter::default();
    writer.bytes.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    let (literals, distances) = fixed_lens();
    let (literal_codes, distance_codes) = (codes(&literals).unwrap(), codes(&distances).unwrap());
    let mut at = 0;
    loop {
        let left = plain.len() - at;
        let len = (random(30_000) as usize).min(left);
        let last = len == left;
        match random(3) {
            0 => {
                writer.put(u32::from(last), 3);
                // What the padding is does not matter to anyone.
                let missing = writer.missing();
                writer.put(random(256) as u32 & ((1 << missing) - 1), missing);
                writer.flush();
                writer.bytes.extend_from_slice(&(len as u16).to_le_bytes());
                writer.bytes.extend_from_slice(&(!(len as u16)).to_le_bytes());
                writer.bytes.extend_from_slice(&plain[at..at + len]);
                at += len;
            }
            kind => {
                writer.put(u32::from(last) | (kind as u32) << 1, 3);
                if kind == 2 {
                    Header::of(literals.to_vec(), distances.to_vec(), random(2) == 0).write(&mut writer).unwrap();
                }
                let end = at + len;
                while at < end {
                    let distance = 1 + random(at.min(32_768) as u64) as usize;
                    let longest = if at == 0 { 0 } else { (0..258.min(end - at)).take_while(|n| plain[at + n] == plain[at + n - distance]).count() };
                    if longest >= 3 && random(4) > 0 {
                        let len = 3 + random(longest as u64 - 2) as usize;
                        let symbol = length_code(len as u16);
                        writer.put(literal_codes[257 + symbol].into(), literals[257 + symbol].into());
                        writer.put(len as u32 - u32::from(LENGTH_CODES[symbol].0), LENGTH_CODES[symbol].1.into());
                        let symbol = distance_code(distance as u16);
                        writer.put(distance_codes[symbol].into(), 5);
                        writer.put(distance as u32 - u32::from(DISTANCE_CODES[symbol].0), DISTANCE_CODES[symbol].1.into());
                        at += len;
                    } else {
                        writer.put(literal_codes[usize::from(plain[at])].into(), literals[usize::from(plain[at])].into());
                        at += 1;
                    }
                }
                writer.put(literal_codes[256].into(), 7);
            }
        }
        if last {
            let (bits, count) = writer.flush();
            if count > 0 {
                writer.bytes.push(bits);
            }
            writer.bytes.extend_from_slice(b"checksum");
            return writer.bytes;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn random_choices_come_back(seed: u64, len in prop_oneof![0usize..100, 0usize..200_000]) {
        let mut plain = text(seed, len);
        if seed % 3 == 0 {
            plain = plain.iter().map(|byte| byte & 3).collect();
        }
        let result = there_and_back(&random_encoder(&plain, seed));
        prop_assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn members_and_what_follows_them_come_back(seeds in proptest::collection::vec((any::<u64>(), 0usize..60_000, 0u32..10), 1..6), garbage in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut packed: Vec<u8> = seeds.iter().flat_map(|(seed, len, level)| gzip(&text(*seed, *len), *level)).collect();
        packed.extend_from_slice(&garbage);
        // What follows may look like a member that is damaged: then the stream is refused.
        prop_assert!(there_and_back(&packed).is_ok() || garbage.starts_with(&[0x1f]));
    }

    #[test]
    fn what_is_damaged_is_refused_or_comes_back(seed: u64, at: usize, bit in 0u8..8, cut: usize) {
        let mut packed = gzip(&text(seed, 30_000), (seed % 10) as u32);
        let whole = packed.len();
        packed[at % whole] ^= 1 << bit;
        let _ = there_and_back(&packed);
        let short = &gzip(&text(seed, 30_000), 6)[..cut % 2000];
        prop_assert!(there_and_back(short).is_err());
    }

    #[test]
    fn damaged_corrections_are_noticed_or_give_other_bytes(seed: u64, damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6), numbers: (u32, u8, u64, u32)) {
        let packed = random_encoder(&text(seed, 40_000), seed);
        let mut analyzer = Analyzer::new(&packed[..]);
        let section = analyzer.next_section().unwrap().unwrap();
        let (place, plain, mut corrections) = (section.place, section.plain.to_vec(), section.corrections);
        for (at, byte) in damage {
            let index = at % corrections.len();
            corrections[index] ^= byte;
        }
        if let Ok(bytes) = rebuild(&place, &plain, &corrections, packed.len()) {
            prop_assert_eq!(bytes.len(), packed.len());
        }
        let (plain_len, partial, packed_bits, member_offset) = numbers;
        let place = Place { packed_bits, partial, plain_len, member_offset: member_offset.into() };
        let _ = rebuild(&place, &plain, &corrections, packed.len());
        let place = Place { packed_bits, partial, ..section.place };
        let _ = rebuild(&place, &plain, &corrections, (member_offset % 100_000) as usize);
    }

    #[test]
    fn any_bytes_are_corrections_of_something_or_nothing(corrections in proptest::collection::vec(any::<u8>(), 0..300), len in 0usize..9000, head: (u8, u8)) {
        let plain = text(7, len);
        let place = Place { packed_bits: 0, partial: 0, plain_len: len as u32, member_offset: 0 };
        let _ = rebuild(&place, &plain, &corrections, 4000);
        let with_head = [&[head.0 % 3, head.1 % 10, 0, 0, 0, 0][..], &corrections].concat();
        let _ = rebuild(&place, &plain, &with_head, 4000);
    }
}

#[test]
fn sections_are_made_one_by_one() {
    let plain = text(3, 3 * SECTION_LEN + 12_345);
    let packed = gzip(&plain, 6);
    let corrections = there_and_back(&packed).unwrap();
    assert!(corrections < packed.len() / 5, "{corrections} of {}", packed.len());
    let mut analyzer = Analyzer::new(&packed[..]);
    let mut lens = Vec::new();
    while let Some(section) = analyzer.next_section().unwrap() {
        lens.push(section.plain.len());
    }
    assert!(lens.len() >= 3 && lens.iter().all(|len| *len <= MAX_SECTION_LEN), "{lens:?}");
}

#[test]
fn what_is_nearly_nothing_or_nearly_everything_the_same() {
    for plain in [Vec::new(), vec![0; 1], vec![0; 20_000_000], vec![b'x'; 70_000]] {
        for level in [0, 1, 6, 9] {
            there_and_back(&gzip(&plain, level)).unwrap();
        }
    }
    assert!(matches!(there_and_back(b""), Err(AnalyzeError::NotGzip)));
    assert!(matches!(there_and_back(b"plain text that is long enough"), Err(AnalyzeError::NotGzip)));
    assert!(matches!(there_and_back(&[0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]), Err(AnalyzeError::Invalid(_))));
}

#[test]
fn a_header_with_name_extra_and_comment_is_kept() {
    let mut encoder = flate2::GzBuilder::new().filename("name").comment("comment").extra(vec![1, 2, 3]).mtime(7).write(Vec::new(), flate2::Compression::best());
    encoder.write_all(&text(1, 5000)).unwrap();
    there_and_back(&encoder.finish().unwrap()).unwrap();
}

/// Runs a program with bytes on its input; `None`, with the reason, if it is not here.
fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let spawned = std::process::Command::new(program).args(arguments).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        eprintln!("skipped: this machine has no {program}");
        return None;
    };
    let (mut pipe, input) = (child.stdin.take()?, input.to_vec());
    let feeding = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    Some(output.stdout)
}

#[test]
fn gzip_and_zlib_are_known_at_every_level() {
    let plain = text(11, 700_000);
    let script = "import sys, zlib; c = zlib.compressobj(int(sys.argv[1]), zlib.DEFLATED, 31); d = sys.stdin.buffer.read(); sys.stdout.buffer.write(c.compress(d) + c.flush())";
    for level in 1..=9 {
        for packed in [piped("gzip", &[&format!("-{level}")], &plain), piped("python3", &["-c", script, &level.to_string()], &plain)].into_iter().flatten() {
            let corrections = there_and_back(&packed).unwrap();
            assert!(corrections * 100 < packed.len(), "level {level}: {corrections} of {}", packed.len());
        }
    }
}

/// If this fails, a change made corrections that are stored mean something else: a new [`VERSION`] is needed, and the old
/// predictions for what was stored with it.
#[test]
fn golden_predictions_and_corrections() {
    let plain = text(5, 300_000);
    let mut all = Vec::new();
    for (block_len, start, origin) in [(0, 0, 0), (0, 200_000, -1_000_000), (65_536, 0, 0), (131_072, 131_072, 0)] {
        for encoder in Encoder::all(block_len) {
            let mut matches = Vec::new();
            parse::Parser::default().parse(encoder, parse::Job { input: &plain, start, origin }, &mut matches);
            assert!(matches.iter().all(|found| found.start as usize >= start));
            all.extend(
                matches.iter().flat_map(|found| [found.start.to_le_bytes(), (u32::from(found.len) << 16 | u32::from(found.distance)).to_le_bytes()].concat()),
            );
        }
    }
    let packed = random_encoder(&text(6, 100_000), 6);
    let mut analyzer = Analyzer::new(&packed[..]);
    let corrections = analyzer.next_section().unwrap().unwrap().corrections;
    let digests = [layer_format::Digest::of(&all).to_string(), layer_format::Digest::of(&corrections).to_string()];
    assert_eq!(digests, GOLDEN);
}
const GOLDEN: [&str; 2] =
    ["b3:d4a05d651f3acfde7ed1570c720d04b5dca835c7235bee4aae468ceb62026d12", "b3:efdf095c6f4480a1b8fbb4637de589c21cd412173e627e065ded58824f9e1f0b"];

#[test]
fn pigz_is_known() {
    let plain = text(12, 700_000);
    if let Some(packed) = piped("pigz", &["-p", "2"], &plain) {
        let corrections = there_and_back(&packed).unwrap();
        assert!(corrections * 100 < packed.len(), "{corrections} of {}", packed.len());
    }
}

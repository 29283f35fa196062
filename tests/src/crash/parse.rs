//! Reading what `strace -ff -ttt -T -y -xx` writes: one file a thread, one line a call, strings in hex.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{Call, Timed};

/// Adds the calls of one thread that have to do with `folder`.
pub(super) fn thread(log: &[u8], folder: &Path, out: &mut Vec<Timed>) {
    // Descriptors whose writes are durable at once; a later open gives the number another meaning.
    let mut durable: HashMap<String, bool> = HashMap::new();
    // Where descriptors were put, by this thread.
    let mut positions: HashMap<String, u64> = HashMap::new();
    for line in String::from_utf8_lossy(log).lines() {
        let Some((begun, ended, name, args, result)) = split(line) else { continue };
        let mut add = |call: Option<Call>| out.extend(call.map(|call| Timed { begun, ended, call }));
        let below = |path: Option<PathBuf>| path.and_then(|path| path.strip_prefix(folder).ok().map(Path::to_owned));
        let arg = |at: usize| args.get(at).copied().unwrap_or_default();
        let number = |at: usize| arg(at).parse::<u64>().ok();
        let fd = || below(fd_path(arg(0)));
        let two = |from: Option<PathBuf>, to: Option<PathBuf>| below(from).zip(below(to));
        match name {
            "open" | "openat" | "creat" => {
                let (path, flags) = if name == "openat" { (at_path(arg(0), arg(1)), arg(2)) } else { (string_path(arg(0)), arg(1)) };
                positions.remove(fd_number(result));
                let has = |flag: &str| flags.split('|').any(|one| one == flag);
                durable.insert(fd_number(result).to_owned(), has("O_DSYNC") || has("O_SYNC"));
                if has("O_CREAT") || has("O_TRUNC") {
                    add(below(path).map(|path| Call::Open { path, cut: has("O_TRUNC") }));
                }
            }
            "lseek" => {
                if let Ok(at) = result.parse() {
                    positions.insert(fd_number(arg(0)).to_owned(), at);
                }
            }
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" => {
                let Some(path) = fd() else { continue };
                let vector = name.contains("writev");
                let mut bytes = if vector { pieces(arg(1)) } else { string(arg(1)) };
                bytes.truncate(result.parse().unwrap_or(0));
                let offset = match name {
                    "write" | "writev" => positions.get_mut(fd_number(arg(0))).map(|at| {
                        *at += bytes.len() as u64;
                        *at - bytes.len() as u64
                    }),
                    _ => number(3),
                };
                let durable = durable.get(fd_number(arg(0))).copied().unwrap_or(false);
                add(Some(Call::Write { path, offset, bytes, durable }));
            }
            "ftruncate" => add(fd().zip(number(1)).map(|(path, len)| Call::SetLen { path, len })),
            "fallocate" => add(fd().zip(number(2).zip(number(3))).map(|(path, (offset, len))| Call::Reserve { path, len: offset + len })),
            "fsync" | "fdatasync" => add(fd().map(|path| Call::Sync { path })),
            "sync" | "syncfs" => add(Some(Call::SyncAll)),
            "rename" => add(two(string_path(arg(0)), string_path(arg(1))).map(|(from, to)| Call::Rename { from, to })),
            "renameat" | "renameat2" => {
                assert!(!arg(4).contains("EXCHANGE"), "an exchange of names is not modelled: {line:.200}");
                add(two(at_path(arg(0), arg(1)), at_path(arg(2), arg(3))).map(|(from, to)| Call::Rename { from, to }));
            }
            "link" => add(two(string_path(arg(0)), string_path(arg(1))).map(|(from, to)| Call::Link { from, to })),
            "linkat" => add(two(at_path(arg(0), arg(1)), at_path(arg(2), arg(3))).map(|(from, to)| Call::Link { from, to })),
            "unlink" | "rmdir" => add(below(string_path(arg(0))).map(|path| Call::Remove { path })),
            "unlinkat" => add(below(at_path(arg(0), arg(1))).map(|path| Call::Remove { path })),
            "mkdir" => add(below(string_path(arg(0))).map(|path| Call::MakeFolder { path })),
            "mkdirat" => add(below(at_path(arg(0), arg(1))).map(|path| Call::MakeFolder { path })),
            "copy_file_range" | "sendfile" => assert!(below(fd_path(arg(0))).is_none(), "a copy within the kernel is not modelled: {line:.200}"),
            _ => {}
        }
    }
}

/// Begin, end, name, arguments and result of a call that succeeded.
fn split(line: &str) -> Option<(f64, f64, &str, Vec<&str>, &str)> {
    let (begun, rest) = line.split_once(' ')?;
    let (name, rest) = rest.split_once('(')?;
    let (rest, took) = rest.rsplit_once(" <")?;
    let (args, result) = rest.rsplit_once(" = ")?;
    let (begun, took): (f64, f64) = (begun.parse().ok()?, took.strip_suffix('>')?.parse().ok()?);
    let result = result.trim();
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    Some((begun, begun + took, name, arguments(args.trim_end().strip_suffix(')')?), result))
}

/// Cuts at commas that are not within brackets, quotes or names of files.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start, mut out) = (0, false, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'[' | b'{' | b'<' if !quoted => depth += 1,
            b']' | b'}' | b'>' if !quoted => depth -= 1,
            b',' if !quoted && depth == 0 => {
                out.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(text[start..].trim());
    out
}

/// `\x61\x62` as bytes.
fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|pair| u8::from_str_radix(pair.get(..2)?, 16).ok()).collect()
}

/// The string in quotes.
fn string(arg: &str) -> Vec<u8> {
    assert!(!arg.ends_with("..."), "strace cut a string short");
    unhex(arg.trim_matches('"'))
}

/// `[{iov_base="..", iov_len=..}, ..]`
fn pieces(arg: &str) -> Vec<u8> {
    assert!(!arg.contains("..."), "strace cut a vector short");
    arg.split("iov_base=\"").skip(1).flat_map(|piece| unhex(piece.split('"').next().unwrap_or_default())).collect()
}

fn path(bytes: Vec<u8>) -> Option<PathBuf> {
    (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
}

fn string_path(arg: &str) -> Option<PathBuf> {
    path(string(arg))
}

/// The number in `5<\x2f..>`.
fn fd_number(arg: &str) -> &str {
    arg.split('<').next().unwrap_or_default()
}

/// The file that `5<\x2f..>` is; `None` if it has no name any more.
fn fd_path(arg: &str) -> Option<PathBuf> {
    let (_, rest) = arg.split_once('<')?;
    let name = rest.strip_suffix('>')?;
    path(unhex(name))
}

fn at_path(folder: &str, name: &str) -> Option<PathBuf> {
    let name = string_path(name)?;
    if name.is_absolute() { Some(name) } else { Some(fd_path(folder)?.join(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read() {
        let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let lines = [
            format!("1.5 openat(AT_FDCWD<{}>, \"{}\", O_RDWR|O_CREAT|O_DSYNC, 0600) = 5<{}> <0.25>", hex("/d"), hex("/d/a"), hex("/d/a")),
            format!(
                "2.0 pwritev(5<{}>, [{{iov_base=\"{}\", iov_len=2}}, {{iov_base=\"{}\", iov_len=1}}], 2, 4096) = 3 <0.5>",
                hex("/d/a"),
                hex("xy"),
                hex("z")
            ),
            format!("3.0 rename(\"{}\", \"{}\") = 0 <0.0>", hex("/d/a"), hex("/d/b")),
            format!("4.0 unlink(\"{}\") = -1 ENOENT (No such file or directory) <0.0>", hex("/d/a")),
            format!("5.0 write(1<{}>, \"{}\", 2) = 2 <0.0>", hex("/elsewhere"), hex("hi")),
            "6.0 +++ exited with 0 +++".to_owned(),
        ];
        let mut out = Vec::new();
        thread(lines.join("\n").as_bytes(), Path::new("/d"), &mut out);
        let calls: Vec<Call> = out.iter().map(|timed| timed.call.clone()).collect();
        let expected = [
            Call::Open { path: "a".into(), cut: false },
            Call::Write { path: "a".into(), offset: Some(4096), bytes: b"xyz".to_vec(), durable: true },
            Call::Rename { from: "a".into(), to: "b".into() },
        ];
        assert_eq!(calls, expected);
        assert_eq!((out[1].begun, out[1].ended), (2.0, 2.5));
    }
}

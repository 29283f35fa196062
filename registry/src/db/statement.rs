//! One text for both databases. A statement is written with `?` (the next value) or `?1` (the value of that number), as
//! SQLite reads it, and `(?*)` after `IN` for a list of any length. PostgreSQL gets `$1`, and `= ANY($1)` with an array
//! for a list; SQLite gets a list as so many marks. Marks in quotes are not marks.

/// Rewrites a statement for PostgreSQL.
pub(super) fn for_postgres(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 16);
    let (mut rest, mut next) = (sql, 0);
    while let Some((before, mark, after)) = next_mark(rest) {
        next += 1;
        match mark {
            Mark::Next => push_all(&mut out, &[before, "$", &next.to_string()]),
            Mark::Number(number) => push_all(&mut out, &[before, "$", number]),
            Mark::List => {
                let before = before.strip_suffix('(').map(str::trim_end).and_then(|before| before.strip_suffix("IN")).unwrap_or(before);
                push_all(&mut out, &[before, "= ANY($", &next.to_string(), ")"]);
            }
        }
        rest = if matches!(mark, Mark::List) { after.strip_prefix(')').unwrap_or(after) } else { after };
    }
    out.push_str(rest);
    out
}

/// Writes out the lists of a statement for SQLite; `lens` are their lengths, in order. `None` if it has none.
pub(super) fn for_sqlite(sql: &str, lens: &[usize]) -> Option<String> {
    if lens.is_empty() {
        return None;
    }
    let (mut rest, mut lens) = (sql, lens.iter());
    let mut out = String::with_capacity(sql.len() + 2 * lens.clone().sum::<usize>());
    while let Some((before, mark, after)) = next_mark(rest) {
        out.push_str(before);
        match mark {
            Mark::Next => out.push('?'),
            Mark::Number(number) => push_all(&mut out, &["?", number]),
            Mark::List => {
                for at in 0..lens.next().copied().unwrap_or(0) {
                    out.push_str(if at == 0 { "?" } else { ",?" });
                }
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

enum Mark<'a> {
    Next,
    Number(&'a str),
    List,
}

/// What is before the next mark, the mark, and what is after it.
fn next_mark(sql: &str) -> Option<(&str, Mark<'_>, &str)> {
    let mut quote = None;
    let at = sql.bytes().position(|byte| match (quote, byte) {
        (None, b'?') => true,
        (None, b'\'' | b'"') => {
            quote = Some(byte);
            false
        }
        (Some(open), byte) if open == byte => {
            quote = None;
            false
        }
        _ => false,
    })?;
    let (before, after) = (&sql[..at], &sql[at + 1..]);
    if let Some(after) = after.strip_prefix('*') {
        return Some((before, Mark::List, after));
    }
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = after.split_at(digits);
    Some((before, if digits == 0 { Mark::Next } else { Mark::Number(number) }, after))
}

fn push_all(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_those_of_the_database() {
        assert_eq!(for_postgres("SELECT 1"), "SELECT 1");
        assert_eq!(for_postgres("a = ? AND b = '?' AND \"c?\" = ?"), "a = $1 AND b = '?' AND \"c?\" = $2");
        assert_eq!(for_postgres("a = ?2 AND b = ?1 AND c = ?12"), "a = $2 AND b = $1 AND c = $12");
        assert_eq!(for_postgres("a = ? AND b IN (?*) AND c = ?"), "a = $1 AND b = ANY($2) AND c = $3");
        assert_eq!(for_postgres("VALUES (?,?), (?, ?)"), "VALUES ($1,$2), ($3, $4)");
        assert_eq!(for_postgres("it = 'it''s ?' AND x = ?"), "it = 'it''s ?' AND x = $1");
        assert_eq!(for_sqlite("a = ? AND b = ?1", &[]), None);
        assert_eq!(for_sqlite("a = ? AND b IN (?*) AND c IN (?*)", &[3, 1]).as_deref(), Some("a = ? AND b IN (?,?,?) AND c IN (?)"));
        assert_eq!(for_sqlite("b IN (?*)", &[0]).as_deref(), Some("b IN ()"));
    }
}

//! Just enough Rust for text checks: comments and strings blanked, tests cut out, functions found.

/// The text with comments, string and character literals replaced by spaces; lines stay.
pub(crate) fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = blank_end(bytes, at, out.last().copied());
        match end {
            Some(end) => {
                let end = end.min(bytes.len());
                let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
                out.extend(bytes[at..end].iter().map(blank));
                at = end;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).expect("literals and comments are blanked whole")
}

/// Where the comment or literal that starts here ends, if one starts here.
fn blank_end(bytes: &[u8], at: usize, before: Option<u8>) -> Option<usize> {
    let rest = &bytes[at..];
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(at + block_comment(rest));
    }
    if rest[0] == b'"' {
        return Some(at + quoted(rest));
    }
    if rest[0] == b'r' && !(in_word && before != Some(b'b')) {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close: Vec<u8> = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let body = &rest[2 + hashes..];
            let length = body.windows(close.len()).position(|window| window == close);
            return Some(at + 2 + hashes + length.map_or(body.len(), |at| at + close.len()));
        }
    }
    (rest[0] == b'\'').then(|| character(rest)).flatten().map(|length| at + length)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a character literal; `None` for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return rest.iter().skip(3).position(|byte| *byte == b'\'').map(|at| at + 4);
    }
    let close = rest.iter().skip(2).take(4).position(|byte| *byte == b'\'')?;
    let inner = std::str::from_utf8(&rest[1..close + 2]).ok()?;
    (inner.chars().count() == 1).then_some(close + 3)
}

/// The code with the bodies of inline `#[cfg(test)]` modules blanked.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let after = &code[start..];
        let (Some(open), semicolon) = (after.find('{'), after.find(';')) else { continue };
        if semicolon.is_none_or(|semicolon| open < semicolon) {
            let end = start + block_end(&after[open..]) + open;
            let blank: String =
                code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            if blank.len() == end - start {
                out.replace_range(start..end, &blank);
            }
        }
    }
    out
}

/// The length of the block that starts with `{`, braces included.
fn block_end(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// A function with a body: its name, first line (from 1) and how many lines it has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// Every function of blanked code, nested ones too.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let starts = words(code).into_iter().filter(|(_, word)| *word == "fn");
    starts.filter_map(|(start, _)| function_at(code, start)).collect()
}

fn function_at(code: &str, start: usize) -> Option<Function> {
    let after = &code[start..];
    let name = words(after).into_iter().nth(1).map(|(_, name)| name.to_owned())?;
    let mut depth = 0_i32;
    let body = after.char_indices().find(|(_, c)| {
        depth += match c {
            '(' | '[' => 1,
            ')' | ']' => -1,
            _ => 0,
        };
        depth == 0 && matches!(c, '{' | ';')
    });
    let (open, '{') = body? else { return None };
    let end = open + block_end(&after[open..]);
    let line = code[..start].matches('\n').count() + 1;
    Some(Function { name, line, lines: after[..end].matches('\n').count() + 1 })
}

/// Every identifier or keyword with its byte offset.
pub(crate) fn words(code: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut at = 0;
    for part in code.split(|c: char| !is_word(c)) {
        if !part.is_empty() {
            found.push((at, part));
        }
        at += part.len() + code[at + part.len()..].chars().next().map_or(0, char::len_utf8);
    }
    found
}

#[test]
fn comments_and_literals_are_blanked_and_lines_stay() {
    let text =
        "a /* x /* y */ z */ b // c\n\"q\\\"{\" r#\"d\"{\"# 'e' '\\'' '\\u{7d}' '{' &'f ()\n'ü'";
    let code = code(text);
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "&'f", "()"]);
    assert_eq!(code.lines().count(), text.lines().count());
}

#[test]
fn inline_test_modules_are_cut_out_and_declared_ones_are_not() {
    let text =
        "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { {} }\n}\n#[cfg(test)]\nmod t;\nfn c() {}";
    let product = without_tests(text);
    assert!(product.contains("fn a") && product.contains("fn c") && !product.contains("fn b"));
}

#[test]
fn functions_are_measured_with_their_braces() {
    let text =
        "fn a(x: [u8; 2]) -> u8\nwhere\n u8: Copy,\n{\n {}\n}\ntrait T { fn b(); fn c() { } }";
    let found = functions(text);
    let function = |name: &str, line, lines| Function { name: name.to_owned(), line, lines };
    assert_eq!(found, [function("a", 1, 6), function("c", 7, 1)]);
}

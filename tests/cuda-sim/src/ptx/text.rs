//! Cutting PTX text into tokens. Comments, `.loc` and `.file` lines end here: they say nothing about
//! what a kernel does.

use super::error::PtxError;

/// The longest text that is read.
const MAX_TEXT: usize = 16 << 20;

/// One token: a word (a name, an opcode with its modifiers, a number or a `.directive`), a quoted
/// text, or one character of punctuation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: u32,
    /// Where it starts in the whole text.
    pub(super) at: u32,
}

impl Token<'_> {
    pub(super) fn is_number(&self) -> bool {
        self.text.as_bytes().first().is_some_and(u8::is_ascii_digit)
    }

    /// A name of a register, variable, label, function or opcode.
    pub(super) fn is_name(&self) -> bool {
        let first = self.text.as_bytes().first();
        first.is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%'))
    }
}

/// Tokens of `text`, with lines counted from one.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, PtxError> {
    if text.len() > MAX_TEXT {
        return Err(PtxError::TooLarge { line: 1, what: "the text's length", limit: MAX_TEXT as u64 });
    }
    let bytes = text.as_bytes();
    let (mut at, mut line, mut all) = (0, 1_u32, Vec::with_capacity(text.len() / 4));
    while let Some(&c) = bytes.get(at) {
        let next = bytes.get(at + 1).copied();
        let end = match c {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            _ if c.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'/' if next == Some(b'/') => {
                at = line_end(bytes, at);
                continue;
            }
            b'/' if next == Some(b'*') => {
                let close = text[at + 2..].find("*/").map(|n| at + 2 + n + 2);
                let close =
                    close.ok_or_else(|| syntax(line, "the end of a comment", "the end of the text"))?;
                line += bytes[at..close].iter().filter(|&&b| b == b'\n').count() as u32;
                at = close;
                continue;
            }
            b'"' => {
                let close = bytes[at + 1..].iter().position(|&b| b == b'"' || b == b'\n');
                match close {
                    Some(n) if bytes[at + 1 + n] == b'"' => at + n + 2,
                    _ => return Err(syntax(line, "a closing quote", "the end of the line")),
                }
            }
            b'.' => word_end(bytes, at + 1),
            _ if word_byte(c) || c == b'%' => word_end(bytes, at + 1),
            _ if c.is_ascii() => at + 1,
            _ => return Err(syntax(line, "ASCII", "a character outside it")),
        };
        // A comment may hold any text; what is cut here begins and ends at ASCII, so at character borders.
        let token = Token { text: &text[at..end], line, at: at as u32 };
        if matches!(token.text, ".loc" | ".file") {
            at = line_end(bytes, at);
            continue;
        }
        all.push(token);
        at = end;
    }
    Ok(all)
}

fn word_byte(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

/// The end of a word that goes on at `at`: dots belong to it, and `::` as in `L2::128B`.
fn word_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(&c) if word_byte(c) || c == b'.' => at += 1,
            Some(b':') if bytes.get(at + 1) == Some(&b':') => at += 2,
            _ => return at,
        }
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
}

pub(super) fn syntax(line: u32, expected: &'static str, found: &str) -> PtxError {
    PtxError::Syntax { line, expected, found: found.chars().take(60).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_punctuation_are_told_apart() {
        let text = "// comment\n@!%p1 ld.global.L2::128B.u32 %r1, [%rd2+-4]; /* two\nlines */ $L_1: .reg .b32 %r<4>;\n.loc 1 2 3, x\nret;";
        let all = tokens(text).unwrap();
        let texts: Vec<_> = all.iter().map(|t| t.text).collect();
        assert_eq!(
            texts,
            [
                "@",
                "!",
                "%p1",
                "ld.global.L2::128B.u32",
                "%r1",
                ",",
                "[",
                "%rd2",
                "+",
                "-",
                "4",
                "]",
                ";",
                "$L_1",
                ":",
                ".reg",
                ".b32",
                "%r",
                "<",
                "4",
                ">",
                ";",
                "ret",
                ";"
            ]
        );
        assert_eq!(all[0].line, 2);
        assert_eq!(all.last().unwrap().line, 5);
    }

    #[test]
    fn text_that_ends_midway_is_an_error() {
        assert!(matches!(tokens("/* never closed"), Err(PtxError::Syntax { line: 1, .. })));
        assert!(matches!(tokens("\n\"open\n"), Err(PtxError::Syntax { line: 2, .. })));
        assert!(matches!(tokens("µ"), Err(PtxError::Syntax { .. })));
    }
}

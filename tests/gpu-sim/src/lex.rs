//! Splits PTX text into tokens with line numbers.

/// One token of PTX text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// Text: a word (name, directive, mnemonic with its modifiers, number), a quoted string or
    /// one punctuation character.
    pub text: &'a str,
    /// Line, from 1.
    pub line: u32,
}

/// Tokens of `text` in order, comments left out.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut out = Vec::with_capacity(text.len() / 4);
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1u32);
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").ok_or(format!("PTX line {line}: open comment"))?;
                line += bytes[at..at + end].iter().filter(|b| **b == b'\n').count() as u32;
                at += end + 2;
                continue;
            }
            b'"' => {
                let end = text[at + 1..].find('"');
                at += 2 + end.ok_or(format!("PTX line {line}: open string"))?;
            }
            b if is_word(b) => at = word_end(bytes, at),
            b'-' if bytes.get(at + 1).is_some_and(u8::is_ascii_digit) => {
                at = word_end(bytes, at + 1);
            }
            b if b.is_ascii() => at += 1,
            _ => return Err(format!("PTX line {line}: byte {byte:#x} is not ASCII")),
        }
        out.push(Token { text: &text[start..at], line });
    }
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// End of the word at `at`; `::` belongs to it (`shared::cta`), a single `:` does not.
fn word_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(&b), _) if is_word(b) => at += 1,
            (Some(b':'), Some(b':')) => at += 2,
            _ => return at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn words_numbers_and_lines() {
        let text = "a.b::c.u32 %r1, [%rd2+-8]; // tail\n/* x\n */ L_1: \"s t\"";
        let got: Vec<(&str, u32)> =
            tokens(text).unwrap().iter().map(|t| (t.text, t.line)).collect();
        let want = [
            ("a.b::c.u32", 1),
            ("%r1", 1),
            (",", 1),
            ("[", 1),
            ("%rd2", 1),
            ("+", 1),
            ("-8", 1),
            ("]", 1),
            (";", 1),
            ("L_1", 3),
            (":", 3),
            ("\"s t\"", 3),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn open_comment_names_its_line() {
        assert!(tokens("\n/* never").unwrap_err().contains("line 2"));
    }
}

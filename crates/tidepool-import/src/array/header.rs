//! The header of an NPY file: magic, version, and a Python dict written out as text.
//!
//! Only what numpy itself writes is read: a dict of string keys with the three values `descr` (a string),
//! `fortran_order` (`True` or `False`) and `shape` (a tuple of whole numbers). The `descr` of a structured
//! type is a list; it is kept as text, to be named in the refusal.

use std::io::{self, Read};

/// How an NPY file begins.
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The longest header read, in bytes; those of plain arrays have 128.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Type of the elements, as numpy writes it, without quotes.
    pub(super) descr: String,
    /// Whether the first index runs fastest.
    pub(super) fortran_order: bool,
    /// Length along each dimension.
    pub(super) shape: Vec<u64>,
    /// Where in the file the elements begin.
    pub(super) data_at: u64,
}

/// Why there is no header.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// Reading failed; the end of the file counts as well.
    Io(io::Error),
    /// The file begins otherwise.
    Magic,
    /// This major version.
    Version(u8),
    /// What is wrong with the dict.
    Dict(String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Header {
    /// Reads as far as the elements.
    pub(super) fn read(reader: &mut impl Read) -> Result<Self, HeaderError> {
        let mut magic = Vec::new();
        reader.take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut version = [0; 2];
        reader.read_exact(&mut version)?;
        let (length, length_bytes) = match version[0] {
            1 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length)?;
                (usize::from(u16::from_le_bytes(length)), 2)
            }
            2 | 3 => {
                let mut length = [0; 4];
                reader.read_exact(&mut length)?;
                (u32::from_le_bytes(length) as usize, 4)
            }
            major => return Err(HeaderError::Version(major)),
        };
        if length > MAX_HEADER_BYTES {
            return Err(HeaderError::Dict(format!("{length} bytes long, more than {MAX_HEADER_BYTES}")));
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text)?;
        // Versions 1 and 2 are Latin-1: what differs from UTF-8 is in no header that is accepted.
        let mut header = Self::parse(&String::from_utf8_lossy(&text)).map_err(HeaderError::Dict)?;
        header.data_at = (MAGIC.len() + 2 + length_bytes + length) as u64;
        Ok(header)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest = Scanner { rest: text };
        rest.expect('{')?;
        while !rest.accept('}') {
            let key = rest.string()?;
            rest.expect(':')?;
            let again = match key {
                "descr" => descr.replace(rest.descr()?).is_some(),
                "fortran_order" => fortran_order.replace(rest.boolean()?).is_some(),
                "shape" => shape.replace(rest.tuple()?).is_some(),
                _ => return Err(format!("unknown key {key:?}")),
            };
            if again {
                return Err(format!("key {key:?} stands twice"));
            }
            if !rest.accept(',') {
                rest.expect('}')?;
                break;
            }
        }
        if !rest.is_at_end() {
            return Err("there is text after the dict".into());
        }
        Ok(Self {
            descr: descr.ok_or("there is no descr")?,
            fortran_order: fortran_order.ok_or("there is no fortran_order")?,
            shape: shape.ok_or("there is no shape")?,
            data_at: 0,
        })
    }
}

/// A shape as Python writes it.
pub(super) fn shape_text(shape: &[u64]) -> String {
    match shape {
        [one] => format!("({one},)"),
        many => {
            let lengths: Vec<_> = many.iter().map(u64::to_string).collect();
            format!("({})", lengths.join(", "))
        }
    }
}

/// The beginning of a file of version 1, as numpy writes it: elements begin on a multiple of 64.
pub(crate) fn header_bytes(descr: &str, shape: &[u64]) -> Vec<u8> {
    const ALIGN: usize = 64;
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {}, }}", shape_text(shape));
    let before = MAGIC.len() + 4;
    let length = (before + text.len() + 1).next_multiple_of(ALIGN) - before;
    text.extend(std::iter::repeat_n(' ', length - 1 - text.len()));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    // Types and shapes of two lengths are far shorter than what 16 bits can say.
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Takes tokens off the front of a text, with the blanks before them.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn accept(&mut self, token: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: char) -> Result<(), String> {
        if self.accept(token) { Ok(()) } else { Err(format!("there is no {token:?} where one must be")) }
    }

    fn is_at_end(&self) -> bool {
        self.rest.trim_start().is_empty()
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// A string in quotes of either kind. Nothing that is accepted has an escape in it.
    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept('\'') {
            '\''
        } else if self.accept('"') {
            '"'
        } else {
            return Err("there is no string where one must be".into());
        };
        let length = self.rest.find(quote).ok_or("a string does not end")?;
        let text = self.take(length);
        self.accept(quote);
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("fortran_order is neither True nor False".into())
    }

    fn tuple(&mut self) -> Result<Vec<u64>, String> {
        let mut lengths = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            self.rest = self.rest.trim_start();
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let length = self.take(digits);
            lengths.push(length.parse().map_err(|_| format!("shape has {length:?} for a length"))?);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(lengths)
    }

    /// A type: a string, or the list of a structured type as it stands there.
    fn descr(&mut self) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        if !self.rest.starts_with('[') {
            return self.string().map(str::to_owned);
        }
        let mut depth = 0usize;
        for (at, c) in self.rest.char_indices() {
            match c {
                '[' => depth += 1,
                ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(self.take(at + 1).to_owned());
            }
        }
        Err("the list of a structured type does not end".into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Option<(String, bool, Vec<u64>)> {
        Header::parse(text).ok().map(|h| (h.descr, h.fortran_order, h.shape))
    }

    #[test]
    fn what_numpy_writes_is_read() {
        let plain = Some(("<f4".to_owned(), false, vec![3, 4]));
        assert_eq!(parsed("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n"), plain);
        assert_eq!(parsed("{'descr':'<f4','fortran_order':False,'shape':(3,4)}"), plain);
        assert_eq!(parsed(r#"{"shape": (3, 4,), "fortran_order": False, "descr": "<f4"}"#), plain);
        assert_eq!(
            parsed("{'descr': '<u8', 'fortran_order': True, 'shape': (7,), }\n"),
            Some(("<u8".to_owned(), true, vec![7]))
        );
        assert_eq!(
            parsed("{'descr': [('a', '<f4', (2,)), ('b', '<i8')], 'fortran_order': False, 'shape': (), }"),
            Some(("[('a', '<f4', (2,)), ('b', '<i8')]".to_owned(), false, vec![]))
        );
    }

    #[test]
    fn what_it_does_not_write_is_refused() {
        for text in [
            "",
            "{",
            "{}",
            "'descr'",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 4)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': [3, 4]}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), 'shape': (3, 4)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), 'other': 'x'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)} more",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (3, 4)}",
            "{'descr': '<f4, 'fortran_order': False, 'shape': (3, 4)}",
            "{'descr': [('a', '<f4'), 'fortran_order': False, 'shape': (3, 4)}",
        ] {
            assert!(Header::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_header_says_where_the_elements_begin() {
        let dict = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n";
        for (major, length) in [
            (1, (dict.len() as u16).to_le_bytes().to_vec()),
            (2, (dict.len() as u32).to_le_bytes().to_vec()),
            (3, (dict.len() as u32).to_le_bytes().to_vec()),
        ] {
            let mut file = MAGIC.to_vec();
            file.extend([major, 0]);
            file.extend(&length);
            file.extend(dict);
            let data_at = file.len() as u64;
            file.extend([0; 48]);
            assert_eq!(Header::read(&mut file.as_slice()).unwrap().data_at, data_at);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (descr, shape) in [("<f4", vec![u64::MAX, 1024]), ("|u1", vec![0, 20]), ("<u8", vec![7])] {
            let bytes = header_bytes(descr, &shape);
            let read = Header::read(&mut bytes.as_slice()).unwrap();
            assert_eq!((read.descr.as_str(), &read.shape, read.fortran_order), (descr, &shape, false));
            assert_eq!((read.data_at, bytes.len() % 64), (bytes.len() as u64, 0));
        }
    }

    #[test]
    fn a_header_that_claims_gigabytes_is_refused_unread() {
        let mut file = MAGIC.to_vec();
        file.extend([2, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(Header::read(&mut file.as_slice()), Err(HeaderError::Dict(_))));
    }

    /// A valid header with some bytes replaced.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let dict = b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4), }\n";
        let mut file = MAGIC.to_vec();
        file.extend([1, 0]);
        file.extend((dict.len() as u16).to_le_bytes());
        file.extend(dict);
        let length = file.len();
        let byte = prop_oneof![any::<u8>(), proptest::sample::select(b"{}[]()',: 0\"".to_vec()),];
        proptest::collection::vec((0..length, byte), 0..6).prop_map(move |changes| {
            let mut file = file.clone();
            for (at, byte) in changes {
                file[at] = byte;
            }
            file
        })
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Header::read(&mut bytes.as_slice()).is_err());
        }

        #[test]
        fn random_text_never_panics(text in "[\\[\\](){}',:\"a-z0-9 <é\u{1f30a}]{0,80}") {
            if let Ok(header) = Header::parse(&text) {
                prop_assert!(text.contains(&header.descr));
            }
        }

        #[test]
        fn damaged_headers_never_panic(bytes in damaged()) {
            if let Ok(header) = Header::read(&mut bytes.as_slice()) {
                prop_assert!(header.data_at <= bytes.len() as u64);
            }
        }

        #[test]
        fn a_shape_comes_back_as_it_was_written(shape in proptest::collection::vec(any::<u64>(), 0..5)) {
            let header = Header { descr: "<f4".into(), fortran_order: false, shape, data_at: 0 };
            let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}", shape_text(&header.shape));
            prop_assert_eq!(Header::parse(&dict), Ok(header));
        }
    }
}

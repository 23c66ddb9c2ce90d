//! The caller's place in a distributed trace, as W3C Trace Context writes it: carried on, never made here.

use std::fmt::{self, Debug, Display, Formatter};

/// Bytes of version, trace id, parent id and flags with the dashes between them.
const LEN: usize = 55;
/// Where the parts begin; a dash ends each but the last.
const TRACE_ID: usize = 3;
const PARENT_ID: usize = 36;
const FLAGS: usize = 53;

/// A `traceparent` of version 00.
///
/// What comes from a caller is taken whole or not at all: the standard has receivers pass over one that is
/// malformed, and begin a trace of their own or none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent([u8; LEN]);

impl TraceParent {
    /// The HTTP header, and gRPC metadata key, in which callers send it.
    pub const HEADER: &'static str = "traceparent";

    /// Reads the value of the header; None: it is malformed. Of a later version, the parts are taken that this one
    /// knows, and of the flags whether the caller samples.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parent: [u8; LEN] = *value.first_chunk()?;
        let hex = |from: usize, to: usize| {
            parent[from..to].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let dashes = [TRACE_ID, PARENT_ID, FLAGS].iter().all(|part| parent[part - 1] == b'-');
        let numbers = hex(0, TRACE_ID - 1)
            && hex(TRACE_ID, PARENT_ID - 1)
            && hex(PARENT_ID, FLAGS - 1)
            && hex(FLAGS, LEN);
        let zero = |from: usize, to: usize| parent[from..to].iter().all(|byte| *byte == b'0');
        if !dashes || !numbers || zero(TRACE_ID, PARENT_ID - 1) || zero(PARENT_ID, FLAGS - 1) {
            return None;
        }
        match (&parent[..TRACE_ID - 1], value.get(LEN)) {
            (b"00", None) => {}
            (b"00" | b"ff", _) => return None,
            // More parts follow, or none.
            (_, None | Some(b'-')) => {
                let sampled =
                    matches!(parent[LEN - 1], b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f');
                parent[..TRACE_ID - 1].copy_from_slice(b"00");
                parent[FLAGS..].copy_from_slice(if sampled { b"01" } else { b"00" });
            }
            _ => return None,
        }
        Some(Self(parent))
    }

    /// The one among the values of a header; None: there is none, it is malformed, or there are several, of which
    /// nobody knows which is meant.
    #[must_use]
    pub fn only<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Option<Self> {
        let mut values = values.into_iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { Self::parse(value) }
    }

    /// As it is sent on.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Digits and dashes.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Display for TraceParent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Debug for TraceParent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard.
    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_well_formed_goes_on_as_it_came() {
        let parse = |text: &str| TraceParent::parse(text.as_bytes()).map(|parent| parent.to_string());
        assert_eq!(parse(GOOD).as_deref(), Some(GOOD));
        let flags = GOOD.replace("-01", "-fe");
        assert_eq!(parse(&flags), Some(flags));
        // A later version, which may be longer.
        for later in [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "01", 1) + "-what-the-future-is"] {
            assert_eq!(parse(&later).as_deref(), Some(GOOD), "{later}");
        }
        let unsampled = GOOD.replacen("00", "fe", 1).replace("-01", "-fe");
        assert_eq!(parse(&unsampled), Some(GOOD.replace("-01", "-00")));
    }

    #[test]
    fn what_is_malformed_is_nothing() {
        let later = GOOD.replacen("00", "01", 1);
        let malformed = [
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD}0"),
            format!(" {}", &GOOD[1..]),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0", 1),
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("b7ad6b7169203331", "b7ad6b716920333g"),
            GOOD.replace("-01", "-0x"),
            format!("{later}0"),
            "\u{fffd}".repeat(20),
        ];
        for text in malformed {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text:?}");
        }
        // No place in it can be changed for another byte without its being seen.
        for at in 0..LEN {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = b'G';
            assert_eq!(TraceParent::parse(&bytes), None, "{at}");
        }
    }

    #[test]
    fn two_are_none() {
        let good = GOOD.as_bytes();
        assert!(TraceParent::only([good]).is_some());
        assert_eq!(TraceParent::only([good, good]), None);
        assert_eq!(TraceParent::only([]), None);
    }
}

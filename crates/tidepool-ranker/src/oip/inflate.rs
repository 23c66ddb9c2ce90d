//! Bodies that come compressed: brought to their length and no further than the largest body there may be.

use std::io::Read;

use axum::body::Bytes;
use flate2::read::{GzDecoder, ZlibDecoder};

use crate::RankError;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// In HTTP, deflate is a zlib stream.
    Deflate,
}

impl Encoding {
    /// By the header; `None`: not at all.
    pub(super) fn of(header: &[u8]) -> Result<Option<Self>, RankError> {
        let word = String::from_utf8_lossy(&header[..header.len().min(32)]).trim().to_ascii_lowercase();
        match word.as_str() {
            "" | "identity" => Ok(None),
            "gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(RankError::Invalid(format!(
                "content-encoding {word:?} is not taken: gzip, deflate, identity"
            ))),
        }
    }
}

/// The body as it was before.
pub(super) fn inflate(encoding: Encoding, body: &[u8], max_bytes: usize) -> Result<Bytes, RankError> {
    // One more byte tells a body that ends there from one that goes on.
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut out = Vec::new();
    let read = match encoding {
        Encoding::Gzip => GzDecoder::new(body).take(limit).read_to_end(&mut out),
        Encoding::Deflate => ZlibDecoder::new(body).take(limit).read_to_end(&mut out),
    };
    read.map_err(|error| RankError::Invalid(format!("the body does not decompress: {error}")))?;
    if out.len() > max_bytes {
        return Err(RankError::Invalid(format!("the body decompresses to more than {max_bytes} bytes")));
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };

    use super::*;

    #[test]
    fn bodies_come_back_and_bombs_do_not() {
        let text = [7u8; 100_000];
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let zlib = zlib.finish().unwrap();
        for (encoding, body) in [(Encoding::Gzip, &gzip), (Encoding::Deflate, &zlib)] {
            assert_eq!(inflate(encoding, body, text.len()).unwrap(), text[..]);
            let long = inflate(encoding, body, text.len() - 1).unwrap_err().to_string();
            assert!(long.contains("to more than 99999 bytes"), "{long}");
            assert!(inflate(encoding, &body[..body.len() / 2], text.len()).is_err());
            assert!(inflate(encoding, b"plain", text.len()).is_err());
        }
        assert_eq!(Encoding::of(b"GZIP").unwrap(), Some(Encoding::Gzip));
        assert_eq!(Encoding::of(b"identity").unwrap(), None);
        assert!(Encoding::of(b"br").unwrap_err().to_string().contains("\"br\" is not taken"));
    }
}

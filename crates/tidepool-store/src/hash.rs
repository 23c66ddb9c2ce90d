//! Content hashes: xxh3-128, in lower-case hex. They find damage and mix-ups; they are no signature.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The hash by which manifests call a content: 32 hex digits.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> String {
    hex(xxh3_128(bytes))
}

/// The [`content_hash`] of a file of any size, in constant memory.
pub(crate) fn file_hash(path: &Path) -> io::Result<String> {
    const BLOCK_BYTES: usize = 1 << 18;
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut hasher = Xxh3::new();
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(hasher.digest128())),
            Ok(read) => hasher.update(&block[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_published_algorithm() {
        // XXH3_128bits of nothing, seed 0, as xxHash's own test values give it.
        assert_eq!(content_hash(b""), "99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn a_file_hashes_like_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for len in [0usize, 1, 1 << 18, (1 << 18) + 1, 700_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(file_hash(&path).unwrap(), content_hash(&bytes), "{len} bytes");
        }
    }
}

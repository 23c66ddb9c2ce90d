//! The little that is read out of certificates beside their verification, which is webpki's: until when they hold,
//! and the names that they are for.

use rustls::pki_types::CertificateDer;

use crate::utc;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, which certificates of version 1 leave out.
const EXPLICIT_0: u8 = 0xa0;

/// From when to when a certificate holds, both included, in seconds since the beginning of 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// When `certificate` holds; `None` when that is no certificate.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let mut outer = Reader(certificate);
    let mut certificate = Reader(outer.value(SEQUENCE)?);
    let mut fields = Reader(certificate.value(SEQUENCE)?);
    let (tag, _) = fields.next()?;
    if tag == EXPLICIT_0 {
        // The serial number is after it.
        fields.next()?;
    }
    // The algorithm of the signature, and who made it.
    fields.value(SEQUENCE)?;
    fields.value(SEQUENCE)?;
    let mut times = Reader(fields.value(SEQUENCE)?);
    Some(Validity { not_before: times.time()?, not_after: times.time()? })
}

/// The DNS names of `certificate`, in its order; none when that is no certificate.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().map(str::to_owned).collect()
}

/// What is left of some DER.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let len = if first < 0x80 {
            usize::from(first)
        } else {
            // The number of bytes of the length; no certificate of ours needs more than four.
            let (len, after) =
                rest.split_at_checked(usize::from(first & 0x7f)).filter(|(l, _)| l.len() <= 4)?;
            rest = after;
            len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))
        };
        let (content, after) = rest.split_at_checked(len)?;
        self.0 = after;
        Some((tag, content))
    }

    fn value(&mut self, expected: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
    }

    /// A moment: `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` after.
    fn time(&mut self) -> Option<i64> {
        let (tag, content) = self.next()?;
        let digits = content.strip_suffix(b"Z")?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = |digits: &[u8]| digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0'));
        let (year, rest) = match (tag, digits.len()) {
            (UTC_TIME, 12) => match number(&digits[..2]) {
                year @ 50.. => (1900 + year, &digits[2..]),
                year => (2000 + year, &digits[2..]),
            },
            (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
            _ => return None,
        };
        let part = |at: usize| number(&rest[2 * at..2 * at + 2]);
        utc::seconds((year, part(0), part(1)), (part(2), part(3), part(4)))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["node-1".to_owned(), "localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn validity_and_names_are_read() {
        let day = |y, m, d| utc::seconds((y, m, d), (0, 0, 0)).unwrap();
        // The second is written with four digits of the year, the first with two.
        let certificate = certificate((2024, 2, 29), (2061, 12, 31));
        let validity = validity(&certificate).unwrap();
        assert_eq!(validity, Validity { not_before: day(2024, 2, 29), not_after: day(2061, 12, 31) });
        assert_eq!(names(&certificate), ["node-1", "localhost"]);
    }

    #[test]
    fn what_is_cut_or_changed_never_panics() {
        let certificate = certificate((2024, 1, 1), (2030, 1, 1));
        for len in 0..certificate.len() {
            let cut = CertificateDer::from(certificate[..len].to_vec());
            assert_eq!(validity(&cut), None, "{len} bytes");
            assert!(names(&cut).is_empty());
        }
        for at in 0..certificate.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = certificate.to_vec();
                bytes[at] ^= flip;
                let changed = CertificateDer::from(bytes);
                let _ = (validity(&changed), names(&changed));
            }
        }
    }
}

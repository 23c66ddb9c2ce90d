//! When to say that a certificate ends: soon, and that it has. Once a day each, and at once when that becomes so.

use std::collections::BTreeMap;

use crate::{tls::Validity, utc};

const DAY: i64 = 24 * 3600;
/// A certificate that ends sooner is told of.
const ENDS_SOON: i64 = 14 * DAY;

/// What is to be said of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    Soon,
    Ended,
}

/// What was said of which certificate, and when.
#[derive(Debug, Default)]
pub(crate) struct Notices(BTreeMap<&'static str, (Notice, i64, Validity)>);

impl Notices {
    /// What is to be said now.
    pub(crate) fn due(&mut self, certificate: &'static str, validity: Validity, now: i64) -> Option<Notice> {
        let notice = match validity.not_after - now {
            ..0 => Notice::Ended,
            0..ENDS_SOON => Notice::Soon,
            _ => return None,
        };
        let said = self.0.get(certificate).is_some_and(|(said, at, of)| {
            (*said, *of) == (notice, validity) && (0..DAY).contains(&(now - at))
        });
        if said {
            return None;
        }
        self.0.insert(certificate, (notice, now, validity));
        Some(notice)
    }
}

impl Notice {
    pub(crate) fn tell(self, certificate: &str, validity: Validity) {
        let expires = utc::format(validity.not_after);
        match (self, certificate) {
            (Self::Soon, "own") => {
                tracing::warn!(expires, "this process' certificate ends soon: put a new one in its place");
            }
            (Self::Ended, "own") => tracing::error!(
                expires,
                "this process' certificate has expired: whoever connects refuses it; put a new one in its place"
            ),
            (Self::Soon, _) => tracing::warn!(
                expires,
                "an authority that certificates are checked against ends soon: put its successor beside it"
            ),
            (Self::Ended, _) => tracing::error!(
                expires,
                "an authority that certificates are checked against has expired, and all that it has signed with it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_told_of_once_a_day_and_at_once_when_it_has() {
        let (mut notices, start) = (Notices::default(), 1_800_000_000);
        let validity = Validity { not_before: 0, not_after: start + 30 * DAY };
        let mut said = Vec::new();
        // A look every ten minutes.
        for now in (start..start + 32 * DAY).step_by(600) {
            if let Some(notice) = notices.due("own", validity, now) {
                said.push((notice, (now - start) / DAY));
            }
            assert_eq!(notices.due("own", validity, now), None);
        }
        let soon = (16..30).map(|day| (Notice::Soon, day));
        let ended = [(Notice::Ended, 30), (Notice::Ended, 31)];
        assert_eq!(said, soon.chain(ended).collect::<Vec<_>>());
    }

    #[test]
    fn another_certificate_is_told_of_by_itself() {
        let mut notices = Notices::default();
        let ends = |not_after| Validity { not_before: 0, not_after };
        assert_eq!(notices.due("own", ends(DAY), 0), Some(Notice::Soon));
        assert_eq!(notices.due("authority", ends(DAY), 0), Some(Notice::Soon));
        assert_eq!(notices.due("own", ends(2 * DAY), 1), Some(Notice::Soon), "renewed for a day only");
        assert_eq!(notices.due("own", ends(90 * DAY), 2), None);
    }
}

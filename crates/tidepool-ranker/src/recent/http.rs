//! `GET /v1/requests`: what became of recent requests. `id=ID` asks for those with that id (percent-encoded),
//! `slowest=N` and `failed=N` for so many of the slowest or of those without an answer, `last=N` for the last ones.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tidepool_types::ErrorCode;

use super::{
    Recent,
    record::{Record, cut_id},
};
use crate::http::answer_error;

/// Requests that one answer tells of at most.
const MAX_TOLD: usize = 100;

#[derive(Clone)]
struct Teller {
    ranker: String,
    recent: Recent,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Id(String),
    Slowest(usize),
    Failed(usize),
    Last(usize),
}

/// The route.
pub(crate) fn routes(ranker: String, recent: Recent) -> Router {
    Router::new().route("/v1/requests", get(tell)).with_state(Teller { ranker, recent })
}

async fn tell(State(teller): State<Teller>, uri: Uri) -> Response {
    let asked = match asked(uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(problem) => return answer_error(StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest, &problem),
    };
    // It looks at every place of the ring.
    let told = tokio::task::spawn_blocking(move || {
        let Teller { ranker, recent } = teller;
        let newest_first = |record: &Record| u64::MAX - record.number;
        let requests = match asked {
            Asked::Id(id) => {
                let id = cut_id(&id);
                recent.pick(|record| &*record.request_id == id, newest_first, MAX_TOLD, Record::object)
            }
            Asked::Slowest(n) => recent.pick(|_| true, |r| u128::MAX - r.took.as_nanos(), n, Record::object),
            Asked::Failed(n) => recent.pick(Record::failed, newest_first, n, Record::object),
            Asked::Last(n) => recent.pick(|_| true, newest_first, n, Record::object),
        };
        let (mut kept, mut oldest) = (0u64, None);
        recent.each(|record| {
            kept += 1;
            oldest =
                Some(oldest.map_or(record.arrived, |oldest: std::time::Duration| oldest.min(record.arrived)));
        });
        json!({
            "schema_version": 1,
            "ranker": ranker,
            "recent_requests": recent.capacity(),
            "kept": kept,
            "oldest_unix_ms": oldest.map(|oldest| u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)),
            "requests": requests,
        })
    });
    match told.await {
        Ok(told) => Json(told).into_response(),
        Err(error) => {
            answer_error(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, &error.to_string())
        }
    }
}

fn asked(query: &str) -> Result<Asked, String> {
    let mut asked = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let count = || match value.parse::<usize>() {
            Ok(count) if (1..=MAX_TOLD).contains(&count) => Ok(count),
            _ => Err(format!("{key}={value}: a whole number from 1 to {MAX_TOLD} is expected")),
        };
        let new = match key {
            "id" => Asked::Id(decoded(value).ok_or("id: it is not percent-encoded UTF-8")?),
            "slowest" => Asked::Slowest(count()?),
            "failed" => Asked::Failed(count()?),
            "last" => Asked::Last(count()?),
            _ => return Err(format!("{key:?} is not known: id, slowest, failed and last are")),
        };
        if asked.replace(new).is_some() {
            return Err("one of id, slowest, failed and last at a time".into());
        }
    }
    match asked {
        Some(Asked::Id(id)) if id.is_empty() => Err(
            "id: it is empty. The ranker gives requests without an id one, and answers with it (request_id)"
                .into(),
        ),
        Some(asked) => Ok(asked),
        None => Err("nothing is asked for: give id, slowest, failed or last".into()),
    }
}

/// Takes the percent-encoding away; None: it is broken, or what it stands for is no text.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_of_four() {
        assert_eq!(asked("id=a%2Fb%20%C3%BC%26"), Ok(Asked::Id("a/b ü&".into())));
        assert_eq!(asked("slowest=10"), Ok(Asked::Slowest(10)));
        assert_eq!((asked("failed=1"), asked("last=100")), (Ok(Asked::Failed(1)), Ok(Asked::Last(100))));
        for (query, word) in [
            ("", "nothing is asked for"),
            ("id=", "it is empty"),
            ("id=%zz", "percent-encoded"),
            ("id=%c3", "percent-encoded"),
            ("id=%c", "percent-encoded"),
            ("slowest=0", "from 1 to 100"),
            ("failed=101", "from 1 to 100"),
            ("id=a&last=1", "at a time"),
            ("newest=1", "not known"),
        ] {
            assert!(asked(query).unwrap_err().contains(word), "{query}");
        }
    }
}

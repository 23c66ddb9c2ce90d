//! One document in etcd, written by the controller that leads.

use tidepool_runtime::error::chain;
use tokio::runtime::Handle;

use super::{
    Keys, after,
    client::{Etcd, created_at, delete, put, read, written_at},
    pb::{
        etcdserverpb::{TxnRequest, response_op::Response},
        mvccpb::KeyValue,
    },
};
use crate::metastore::{
    Lease, Metastore, MetastoreError, Versioned,
    document::{decode, encode},
};

/// A document of more bytes is cut: etcd takes requests of 1.5 MiB.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKED: &str = "tidepool-chunks 1";

/// The document, for as long as a controller leads.
#[derive(Debug)]
pub(super) struct EtcdMetastore {
    pub(super) etcd: Etcd,
    pub(super) keys: Keys,
    /// etcd's revision of the leader's key: who writes must have made it.
    pub(super) leads_since: i64,
    pub(super) lease: Lease,
    /// Of this thread pool's runtime: this type is called where waiting is allowed.
    pub(super) runtime: Handle,
    pub(super) known: Known,
    pub(super) history: History,
}

/// Which part of etcd's history is kept. Each revision of the document is a copy of it there, and etcd keeps all of
/// them, until it is full, unless it is told to forget.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    /// Revisions of the document between two times; 0: never.
    pub(super) every: u64,
    /// etcd's revision that will be the oldest after the next time: whoever began to read before it is done by then.
    pub(super) begins: i64,
}

impl History {
    /// The revision before which everything may be forgotten, now that the document was `stored` at `written`.
    fn turn(&mut self, stored: u64, written: i64) -> Option<i64> {
        let due = self.every > 0 && stored.is_multiple_of(self.every);
        due.then(|| std::mem::replace(&mut self.begins, written))
    }
}

/// What is there, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// Our revision of the document; 0: there is none, or none that can be read.
    revision: u64,
    /// etcd's revision of the key; 0: there is none.
    written: i64,
    /// The largest revision that a store was tried with: a failed one may have reached etcd.
    tried: u64,
}

impl Metastore for EtcdMetastore {
    fn load(&mut self) -> Result<Option<Versioned>, MetastoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let (found, known) = load(&self.etcd, &self.keys).await?;
            self.known = known;
            found
        })
    }

    fn store(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.put(expected, document))
    }
}

/// Reads the document, and where it is. It may be damaged; that it could not be read is the outer error.
pub(super) async fn load(
    etcd: &Etcd,
    keys: &Keys,
) -> Result<(Result<Option<Versioned>, MetastoreError>, Known), MetastoreError> {
    let (found, now) = etcd.get("read the state", keys.state()).await?;
    let Some(found) = found else { return Ok((Ok(None), Known::default())) };
    let place = place(keys);
    let document = match whole(etcd, keys, &found, now, &place).await {
        Ok(bytes) => decode(&place, &bytes),
        Err(error @ MetastoreError::Corrupt { .. }) => Err(error),
        Err(error) => return Err(error),
    };
    let revision = document.as_ref().map_or(0, |found| found.revision);
    Ok((document.map(Some), Known { revision, written: found.mod_revision, tried: revision }))
}

/// The bytes of a document, of all its chunks as they were at the revision `now`.
async fn whole(
    etcd: &Etcd,
    keys: &Keys,
    found: &KeyValue,
    now: i64,
    place: &str,
) -> Result<Vec<u8>, MetastoreError> {
    let Some((name, chunks)) = pointer(&found.value, place)? else { return Ok(found.value.to_vec()) };
    let mut bytes = Vec::new();
    for number in 0..chunks {
        let chunk = etcd.get_at("read a chunk of the state", keys.chunk(&name, number), now).await?;
        let chunk = chunk.ok_or_else(|| {
            let problem = format!("chunk {number} of {chunks} is not there");
            MetastoreError::Corrupt { place: place.to_owned(), problem }
        })?;
        bytes.extend_from_slice(&chunk.value);
    }
    Ok(bytes)
}

/// The name and the number of chunks, when `value` says that the document is cut.
fn pointer(value: &[u8], place: &str) -> Result<Option<(String, usize)>, MetastoreError> {
    let Some(fields) = value.strip_prefix(CHUNKED.as_bytes()) else { return Ok(None) };
    let read = || {
        let mut fields = std::str::from_utf8(fields).ok()?.split(' ').skip(1);
        let name = fields.next()?.strip_prefix("name=")?.to_owned();
        let chunks = fields.next()?.strip_prefix("chunks=")?.parse().ok()?;
        Some((name, chunks))
    };
    let problem = || "it says that it is cut, and not how".to_owned();
    read().map(Some).ok_or_else(|| MetastoreError::Corrupt { place: place.to_owned(), problem: problem() })
}

fn place(keys: &Keys) -> String {
    format!("the key {} in etcd", String::from_utf8_lossy(&keys.state()))
}

impl EtcdMetastore {
    async fn put(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError> {
        if expected != self.known.revision {
            let (place, found) = (place(&self.keys), self.known.revision);
            return Err(MetastoreError::Conflict { place, expected, found });
        }
        self.known.tried += 1;
        let revision = self.known.tried;
        let bytes = encode(revision, document);
        let name = format!("{:016x}-{revision:016x}", self.leads_since);
        let value = if bytes.len() > CHUNK_BYTES {
            let chunks = bytes.chunks(CHUNK_BYTES);
            let pointer = format!("{CHUNKED} name={name} chunks={}", chunks.len());
            for (number, chunk) in chunks.enumerate() {
                let chunk = put(self.keys.chunk(&name, number), chunk.to_vec(), 0);
                self.fenced("write a chunk of the state", Vec::new(), vec![chunk]).await?;
            }
            pointer.into_bytes()
        } else {
            bytes
        };
        // Those of other documents; ours are in between.
        let (all, own) = (self.keys.chunks(""), self.keys.chunks(&name));
        let others = [delete(all.clone(), own.clone()), delete(after(own), after(all))];
        loop {
            let unchanged = written_at(self.keys.state(), self.known.written);
            let write = put(self.keys.state(), value.clone(), 0);
            let done = [vec![write], others.to_vec()].concat();
            match self.fenced("write the state", vec![unchanged], done).await? {
                Fenced::Done(written) => {
                    (self.known.revision, self.known.written) = (revision, written);
                    self.forget(revision, written);
                    return Ok(revision);
                }
                // An earlier try of ours that nobody heard of, or this one.
                Fenced::Other(Some(found)) if self.is_ours(&found, expected, revision)? => {
                    self.known.written = found.mod_revision;
                }
                Fenced::Other(found) => {
                    let found = match found {
                        Some(found) => decode(&place(&self.keys), &found.value).map_or(0, |f| f.revision),
                        None => 0,
                    };
                    return Err(MetastoreError::Conflict { place: place(&self.keys), expected, found });
                }
            }
        }
    }

    /// Has etcd forget what is old, in the background: nobody waits for it, and what is not forgotten now is the next
    /// time.
    fn forget(&mut self, revision: u64, written: i64) {
        let Some(before) = self.history.turn(revision, written) else { return };
        let etcd = self.etcd.clone();
        self.runtime.spawn(async move {
            match etcd.compact(before).await {
                Ok(()) => tracing::debug!(before, "etcd has forgotten what was before"),
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    "etcd could not be told to forget old revisions, and will be full one day: have it do so itself \
                     (--auto-compaction-retention) and set etcd_compact_every = 0"
                ),
            }
        });
    }

    /// Whether a document that is not the expected one is one that was tried to be stored since that. While the
    /// leader's key stands nobody else can have written; an operator's hand is no reason to go on.
    fn is_ours(&self, found: &KeyValue, expected: u64, tried: u64) -> Result<bool, MetastoreError> {
        let place = place(&self.keys);
        let bytes = match pointer(&found.value, &place)? {
            // The name says all.
            Some((name, _)) => {
                let of_us = name.strip_prefix(&format!("{:016x}-", self.leads_since));
                let number = of_us.and_then(|number| u64::from_str_radix(number, 16).ok());
                return Ok(number.is_some_and(|number| number > expected && number <= tried));
            }
            None => &found.value,
        };
        let number = decode(&place, bytes)?.revision;
        Ok(number > expected && number <= tried)
    }

    /// Does `done` if this controller leads and `also` holds.
    async fn fenced(
        &self,
        tried: &'static str,
        also: Vec<super::pb::etcdserverpb::Compare>,
        done: Vec<super::pb::etcdserverpb::RequestOp>,
    ) -> Result<Fenced, MetastoreError> {
        // etcd would refuse it as well, but may not be there to say so.
        if !self.lease.is_held() {
            return Err(MetastoreError::Deposed { leader: None });
        }
        let leads = created_at(self.keys.leader(), self.leads_since);
        let request = TxnRequest {
            compare: [vec![leads], also].concat(),
            success: done,
            failure: vec![read(self.keys.leader()), read(self.keys.state())],
        };
        let answer = self.etcd.txn(tried, request).await?;
        if answer.succeeded {
            let header = answer.header.ok_or(MetastoreError::Answer("a write without a header"))?;
            return Ok(Fenced::Done(header.revision));
        }
        let mut found = answer.responses.into_iter().map(|read| match read.response {
            Some(Response::ResponseRange(mut range)) => range.kvs.pop(),
            _ => None,
        });
        let leader = found.next().flatten();
        if leader.as_ref().is_none_or(|leader| leader.create_revision != self.leads_since) {
            self.lease.lose();
            let leader = leader.map(|leader| String::from_utf8_lossy(&leader.value).into_owned());
            return Err(MetastoreError::Deposed { leader });
        }
        Ok(Fenced::Other(found.next().flatten()))
    }
}

/// How a fenced transaction went while this controller leads.
enum Fenced {
    /// It was done, at this revision of etcd.
    Done(i64),
    /// A condition did not hold; this is the document.
    Other(Option<KeyValue>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_kept_for_one_to_two_rounds() {
        let mut history = History { every: 3, begins: 10 };
        let turns: Vec<_> = (1..=9).map(|revision| history.turn(revision, 100 + revision as i64)).collect();
        let of_last = [None, None, Some(10), None, None, Some(103), None, None, Some(106)];
        assert_eq!(turns, of_last);
        let mut never = History { every: 0, begins: 10 };
        assert!((1..=9).all(|revision| never.turn(revision, 1).is_none()));
    }
}

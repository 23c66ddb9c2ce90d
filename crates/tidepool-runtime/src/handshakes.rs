//! Connections whose TLS is under way. Whoever connects and says nothing must not keep others out: there are bounds,
//! for each address and for all, and at a bound the one goes that has been silent the longest.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::task::{AbortHandle, Id, JoinSet};

/// Of one address. A host that comes back has a connection for each of its processes, and handshakes take milliseconds.
const MAX_OF_ADDRESS: usize = 128;
/// Of all addresses.
const MAX: usize = 1024;

/// Handshakes under way, each of which becomes a `T`, or nothing.
#[derive(Debug)]
pub(crate) struct Handshakes<T> {
    tasks: JoinSet<Option<T>>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: Id,
    address: SocketAddr,
    /// Whether anything has been heard.
    spoken: Arc<AtomicBool>,
    task: AbortHandle,
}

impl<T: Send + 'static> Handshakes<T> {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), waiting: VecDeque::new() }
    }

    /// Takes one up. It is given a flag to set once something was heard. Gives the address of the one that had to go
    /// for it, if there was one.
    pub(crate) fn begin<F>(
        &mut self,
        address: SocketAddr,
        handshake: impl FnOnce(Arc<AtomicBool>) -> F,
    ) -> Option<SocketAddr>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let ip = canonical(address);
        let of_address = self.waiting.iter().filter(|w| canonical(w.address) == ip).count();
        let gone = if of_address >= MAX_OF_ADDRESS {
            self.end_oldest(|waiting| canonical(waiting.address) == ip)
        } else if self.waiting.len() >= MAX {
            self.end_oldest(|_| true)
        } else {
            None
        };
        let spoken = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(handshake(spoken.clone()));
        self.waiting.push_back(Waiting { id: task.id(), address, spoken, task });
        gone
    }

    /// The next that is done; pending when there is none under way too.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        while let Poll::Ready(Some(ended)) = self.tasks.poll_join_next_with_id(cx) {
            let (id, made) = match ended {
                Ok((id, made)) => (id, made),
                // It had to go.
                Err(error) => (error.id(), None),
            };
            self.waiting.retain(|waiting| waiting.id != id);
            if let Some(made) = made {
                return Poll::Ready(made);
            }
        }
        Poll::Pending
    }

    /// Ends the oldest of those that are silent, or, where all have spoken, the oldest.
    fn end_oldest(&mut self, is_one: impl Fn(&Waiting) -> bool) -> Option<SocketAddr> {
        let silent = |waiting: &Waiting| !waiting.spoken.load(Ordering::Relaxed);
        let silent = self.waiting.iter().position(|waiting| is_one(waiting) && silent(waiting));
        let at = silent.or_else(|| self.waiting.iter().position(is_one))?;
        let gone = self.waiting.remove(at)?;
        gone.task.abort();
        Some(gone.address)
    }
}

/// One address in both of its forms is one.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::*;

    fn address(host: u8, port: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], u16::try_from(port).unwrap()))
    }

    /// One that says nothing, or something, and never ends.
    fn hang(handshakes: &mut Handshakes<u32>, address: SocketAddr, speaks: bool) -> Option<SocketAddr> {
        handshakes.begin(address, |spoken| {
            spoken.store(speaks, Ordering::Relaxed);
            pending()
        })
    }

    #[tokio::test]
    async fn one_address_drives_out_its_own_and_the_oldest_silent_one_first() {
        let mut handshakes = Handshakes::new();
        assert_eq!(hang(&mut handshakes, address(1, 1), false), None);
        assert_eq!(hang(&mut handshakes, address(2, 1), true), None);
        for port in 2..=MAX_OF_ADDRESS {
            assert_eq!(hang(&mut handshakes, address(2, port), port != 7 && port != 9), None);
        }
        // 2's silent ones first, then its oldest; never the older one of 1.
        for gone in [7, 9, 1, 2] {
            let new = address(2, 1000 + gone);
            assert_eq!(hang(&mut handshakes, new, true), Some(address(2, gone)));
        }
        assert_eq!(hang(&mut handshakes, address(3, 1), false), None, "others are not concerned");
        // Who does what it should is let in meanwhile.
        assert_eq!(handshakes.begin(address(1, 2), |_| async { Some(7) }), None);
        assert_eq!(poll_fn(|cx| handshakes.poll_next(cx)).await, 7);
    }

    #[tokio::test]
    async fn many_addresses_together_are_bounded_too() {
        let mut handshakes = Handshakes::new();
        for at in 0..MAX {
            let host = u8::try_from(at / 100).unwrap();
            assert_eq!(hang(&mut handshakes, address(host, at + 1), at != 300), None);
        }
        assert_eq!(hang(&mut handshakes, address(200, 1), true), Some(address(3, 301)));
        assert_eq!(handshakes.begin(address(201, 1), |_| async { Some(8) }), Some(address(0, 1)));
        assert_eq!(poll_fn(|cx| handshakes.poll_next(cx)).await, 8);
    }

    #[tokio::test]
    async fn those_that_fail_make_room() {
        let mut handshakes = Handshakes::new();
        for port in 1..=MAX_OF_ADDRESS {
            assert_eq!(handshakes.begin(address(1, port), |_| async { None::<u32> }), None);
        }
        assert_eq!(handshakes.begin(address(1, 1000), |_| async { Some(1) }), Some(address(1, 1)));
        assert_eq!(poll_fn(|cx| handshakes.poll_next(cx)).await, 1);
        let all_told = poll_fn(|cx| {
            let _ = handshakes.poll_next(cx);
            if handshakes.waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::time::timeout(std::time::Duration::from_secs(30), all_told).await.unwrap();
    }
}

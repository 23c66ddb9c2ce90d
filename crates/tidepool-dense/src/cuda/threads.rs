//! Where the threads of streams are started from.
//!
//! **Trap:** on Linux a thread inherits the priority of the thread that starts it, and models are loaded by threads of idle
//! priority, which cannot raise it again. A stream that began there would serve last of all. So a device has a thread
//! that starts them: it was itself started by whoever opened the device.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

/// A thread's work.
type Work = Box<dyn FnOnce() + Send>;

struct Request {
    name: String,
    work: Work,
    started: SyncSender<io::Result<JoinHandle<()>>>,
}

/// Starts threads at the priority that its maker had.
#[derive(Debug)]
pub(crate) struct Starter(SyncSender<Request>);

impl Starter {
    /// A starter that lives as long as this is held.
    pub(crate) fn new() -> io::Result<Self> {
        let (requests, to_start) = sync_channel(1);
        thread::Builder::new().name("cuda starter".into()).spawn(move || serve(&to_start))?;
        Ok(Self(requests))
    }

    /// Starts a thread.
    pub(crate) fn start(
        &self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (started, told) = sync_channel(1);
        let gone = || io::Error::other("the thread that starts others has ended");
        self.0.send(Request { name, work: Box::new(work), started }).map_err(|_| gone())?;
        told.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn serve(to_start: &Receiver<Request>) {
    while let Ok(Request { name, work, started }) = to_start.recv() {
        let thread = thread::Builder::new().name(name).spawn(work);
        // Whoever asked waits for it.
        let _ = started.send(thread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_started_by_the_starter_and_named() {
        let starter = Starter::new().unwrap();
        let (tell, told) = sync_channel(2);
        for number in 0..2 {
            let tell = tell.clone();
            let work = move || tell.send(thread::current().name().map(str::to_owned)).unwrap();
            starter.start(format!("stream {number}"), work).unwrap().join().unwrap();
        }
        assert_eq!(told.recv().unwrap().as_deref(), Some("stream 0"));
        assert_eq!(told.recv().unwrap().as_deref(), Some("stream 1"));
    }
}

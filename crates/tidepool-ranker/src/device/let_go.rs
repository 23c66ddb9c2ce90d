//! What is let go where it may wait.

use tokio::runtime::Handle;

/// Something on a device. Letting it go waits for the device, which frees memory then and, of a model, for its threads; and the
/// last to hold a release may be a request or the loader. So it is never done on a thread that runs tasks.
#[derive(Debug)]
pub(crate) struct LetGo<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> LetGo<T> {
    pub(crate) const fn new(what: T) -> Self {
        Self(Some(what))
    }

    /// What it is. Only `drop` takes it out.
    pub(crate) const fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T: Send + 'static> Drop for LetGo<T> {
    fn drop(&mut self) {
        let what = self.0.take();
        match Handle::try_current() {
            // Nobody waits for it. Where the runtime ends, it goes with the task that is not run any more.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(what))),
            Err(_) => drop(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    struct Told(mpsc::Sender<thread::ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    #[tokio::test]
    async fn it_goes_on_another_thread_where_tasks_run() {
        let (tell, told) = mpsc::channel();
        drop(LetGo::new(Told(tell)));
        let by = tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap();
        assert_ne!(by, thread::current().id());
    }

    #[test]
    fn it_goes_at_once_elsewhere() {
        let (tell, told) = mpsc::channel();
        drop(LetGo::new(Told(tell)));
        assert_eq!(told.recv().unwrap(), thread::current().id());
    }
}

//! Work that takes long gives way to whoever waits for the core, every few dozen microseconds.
//!
//! A node does such work at idle priority, and that alone is not enough. Linux (EEVDF, `SCHED_IDLE`) lets a thread that
//! answers in at once only when it wakes up. One that has just run and waits for its next turn may have to wait for an
//! idle thread that has been asleep (for the disk, say) and is owed its share, small as it is: and the share is
//! then handed out until the next tick, 4 ms later. Who gives way is owed nothing.

/// Lets others have the core who wait for it; goes on at once where nobody does.
pub(crate) fn give_way() {
    std::thread::yield_now();
}

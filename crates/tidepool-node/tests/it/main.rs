//! A node over real sockets: tables built into a temporary store, a small controller of the test's own, and
//! answers checked by a decoder that shares nothing with the kernels.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod control;
mod loading;
mod lookups;
mod malformed;
mod memory;
mod oracle;
mod quotas;
mod remote;
mod site;
mod streams;

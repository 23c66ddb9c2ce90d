//! Versions built, published, opened, damaged and compared, through the public interface alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod build_errors;
mod common;
mod damage;
mod golden;
mod layout;
mod residency;
mod round_trip;
mod streamed;

//! The driver through its own calls: memory, order, capture and faults.

mod captures;
mod faults;
mod order;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::{Driver, LaunchShape};
use crate::{Settings, host::HostRange};

/// Adds one to each of `n` u32 at an address.
const PTX: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry add_one(.param .u64 at, .param .u32 n)
{
  .reg .pred %p<2>;
  .reg .b32 %r<6>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [at];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r5, %r1;
  @%p1 bra DONE;
  cvta.to.global.u64 %rd2, %rd1;
  mul.wide.u32 %rd3, %r5, 4;
  add.s64 %rd4, %rd2, %rd3;
  ld.global.u32 %r2, [%rd4];
  add.s32 %r2, %r2, 1;
  st.global.u32 [%rd4], %r2;
DONE:
  ret;
}
";

/// A driver with a current context.
fn device(settings: Settings) -> Driver {
    let driver = Driver::new(settings);
    driver.init().unwrap();
    driver.set_current(driver.retain(0).unwrap()).unwrap();
    driver
}

/// Pageable memory of the host that copies may reach.
struct Bytes(Vec<AtomicU8>);

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|b| AtomicU8::new(*b)).collect())
    }

    fn words(words: &[u32]) -> Self {
        Self::new(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())
    }

    fn range(&self) -> HostRange {
        HostRange::of(&self.0)
    }

    fn get(&self) -> Vec<u8> {
        self.0.iter().map(|b| b.load(Relaxed)).collect()
    }

    fn get_words(&self) -> Vec<u32> {
        self.get().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }
}

/// The function `add_one`, loaded.
fn add_one(driver: &Driver) -> u64 {
    let module = driver.load_module(PTX.as_bytes()).unwrap();
    driver.get_function(module, "add_one").unwrap()
}

fn params(address: u64, n: u32) -> Vec<u8> {
    [&address.to_le_bytes()[..], &n.to_le_bytes()].concat()
}

fn shape(n: u32) -> LaunchShape {
    LaunchShape { grid: [n.div_ceil(32), 1, 1], block: [32, 1, 1], dynamic_shared: 0 }
}

/// Pinned memory with these words.
fn pinned(driver: &Driver, words: &[u32]) -> HostRange {
    let range = driver.allocate_pinned(words.len() * 4).unwrap();
    write(&range, words);
    range
}

fn write(range: &HostRange, words: &[u32]) {
    range.write(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
}

fn words(range: &HostRange) -> Vec<u32> {
    range.read().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

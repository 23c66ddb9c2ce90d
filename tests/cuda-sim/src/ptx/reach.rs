//! All memory that a thread reaches: generic addresses are resolved, alignment is checked, and local
//! and parameter memory are kept.

use super::{
    code::Space,
    error::{Access, FaultKind},
    launch::Machine,
    shared::{Shared, Toucher},
};

/// Where the windows of shared, local and parameter memory lie in the generic address space. Each is
/// 4 GiB long; device memory lies elsewhere.
const SHARED_WINDOW: u64 = 0xf100_0000_0000_0000;
const LOCAL_WINDOW: u64 = 0xf200_0000_0000_0000;
const PARAM_WINDOW: u64 = 0xf300_0000_0000_0000;
const WINDOW: u64 = 1 << 32;

/// Memory of one thread, with a mark for each byte that was written.
#[derive(Default)]
pub(super) struct Bytes {
    pub(super) bytes: Vec<u8>,
    pub(super) written: Vec<bool>,
}

impl Bytes {
    pub(super) fn resize(&mut self, length: usize) {
        self.bytes.resize(length, 0);
        self.written.resize(length, false);
    }

    fn range(&self, offset: u64, length: usize) -> Result<std::ops::Range<usize>, Access> {
        let all = self.bytes.len() as u64;
        match offset.checked_add(length as u64) {
            Some(end) if end <= all => Ok(offset as usize..end as usize),
            _ => Err(Access::OutOfBounds { address: offset, bytes: length as u64, nearest: Some((0, all)) }),
        }
    }

    pub(super) fn load(&self, offset: u64, into: &mut [u8]) -> Result<(), Access> {
        let range = self.range(offset, into.len())?;
        if !self.written[range.clone()].iter().all(|&w| w) {
            return Err(Access::Uninitialised { address: offset, bytes: into.len() as u64 });
        }
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    pub(super) fn store(&mut self, offset: u64, from: &[u8]) -> Result<(), Access> {
        let range = self.range(offset, from.len())?;
        self.written[range.clone()].fill(true);
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    /// Copies `length` bytes with their marks.
    pub(super) fn copy(&mut self, from: usize, to: usize, length: usize) {
        self.bytes.copy_within(from..from + length, to);
        self.written.copy_within(from..from + length, to);
    }
}

pub(super) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space in whose window a generic address lies.
pub(super) fn window_of(address: u64) -> Space {
    [Space::Shared, Space::Local, Space::Param]
        .into_iter()
        .find(|&space| address.wrapping_sub(window(space)) < WINDOW)
        .unwrap_or(Space::Global)
}

/// All memory that a thread reaches.
pub(super) struct Reach<'a> {
    pub(super) machine: &'a Machine<'a>,
    pub(super) shared: &'a mut Shared,
    pub(super) local: &'a mut Bytes,
    pub(super) params: &'a mut Bytes,
    pub(super) param_base: usize,
    pub(super) by: Toucher,
}

impl Reach<'_> {
    /// Space and address in it, with generic addresses resolved and alignment checked.
    fn resolve(
        &self,
        space: Space,
        address: u64,
        bytes: usize,
        store: bool,
    ) -> Result<(Space, u64), FaultKind> {
        let (found, at) = match space {
            Space::Generic => match window_of(address) {
                Space::Param => (Space::Param, address - PARAM_WINDOW),
                found => (found, address - window(found)),
            },
            // The address of a parameter is one in the frame's own part.
            Space::Param => (space, (self.param_base as u64).wrapping_add(address)),
            _ => (space, address),
        };
        if address & (bytes as u64 - 1) == 0 {
            return Ok((found, at));
        }
        let access = Access::Misaligned { address, bytes: bytes as u64 };
        Err(FaultKind::Memory { space: found.name(), store, access })
    }

    pub(super) fn load(&mut self, space: Space, address: u64, into: &mut [u8]) -> Result<(), FaultKind> {
        let (space, at) = self.resolve(space, address, into.len(), false)?;
        let result = match space {
            Space::Shared => return self.shared.load(at, into, self.by),
            Space::Local => self.local.load(at, into),
            Space::Param => self.params.load(at, into),
            Space::Generic | Space::Global | Space::Const => self.machine.memory.load(at, into),
        };
        result.map_err(|access| FaultKind::Memory { space: space.name(), store: false, access })
    }

    pub(super) fn store(&mut self, space: Space, address: u64, from: &[u8]) -> Result<(), FaultKind> {
        let (space, at) = self.resolve(space, address, from.len(), true)?;
        let result = match space {
            Space::Shared => return self.shared.store(at, from, self.by),
            Space::Local => self.local.store(at, from),
            Space::Param => self.params.store(at, from),
            Space::Generic | Space::Global | Space::Const => self.machine.memory.store(at, from),
        };
        result.map_err(|access| FaultKind::Memory { space: space.name(), store: true, access })
    }

    pub(super) fn atomic(
        &mut self,
        space: Space,
        address: u64,
        bytes: u8,
        change: &mut dyn FnMut(u64) -> u64,
    ) -> Result<u64, FaultKind> {
        let length = usize::from(bytes);
        let (found, at) = self.resolve(space, address, length, true)?;
        if matches!(found, Space::Global | Space::Const | Space::Generic) {
            let result = self.machine.memory.atomic(at, length, change);
            return result.map_err(|access| FaultKind::Memory { space: found.name(), store: true, access });
        }
        let mut buffer = [0; 8];
        self.load(space, address, &mut buffer[..length])?;
        let old = u64::from_le_bytes(buffer);
        self.store(space, address, &change(old).to_le_bytes()[..length])?;
        Ok(old)
    }
}

//! Pointers as C hands them over. Each type is a pointer in the ABI, and holds the promise that the header of the real
//! library asks of callers; so the functions that take them need no unsafe code of their own.
#![expect(unsafe_code, reason = "what C callers point to is read and written here")]

use std::ffi::{CStr, c_char, c_void};

use crate::{error::Code, host::HostRange, state::Answer};

/// A place for a result: null, or writable.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes a value if there is a place for it.
    pub(super) fn set(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: the caller gave a place for a value of this type.
            unsafe { self.0.write(value) }
        }
    }

    /// Writes the value of an answer, and gives the number that C gets.
    pub(super) fn give(&self, answer: Answer<T>) -> u32 {
        match answer {
            Ok(_) if self.0.is_null() => Code::INVALID_VALUE.0,
            Ok(value) => {
                self.set(value);
                0
            }
            Err(code) => code.0,
        }
    }
}

impl<T: Copy> Out<T> {
    /// What is there now.
    pub(super) fn get(&self) -> Option<T> {
        // SAFETY: a caller whose place is also read has filled it.
        (!self.0.is_null()).then(|| unsafe { self.0.read() })
    }
}

/// A place for text of a given length.
#[repr(transparent)]
pub(super) struct TextOut(*mut c_char);

impl TextOut {
    /// Writes as much of the text as there is room for, and a NUL; gives how many bytes, with the NUL.
    pub(super) fn set(&self, text: &str, room: usize) -> usize {
        if self.0.is_null() || room == 0 {
            return 0;
        }
        let length = text.len().min(room - 1);
        let range = self.range(length);
        range.write(&text.as_bytes()[..length]);
        // SAFETY: `length` is less than the room that the caller has.
        let end = unsafe { self.0.add(length) };
        // SAFETY: as above: it is inside of what the caller gave.
        unsafe { end.write(0) };
        length + 1
    }

    /// A place that came as a number, as options of the driver do.
    pub(super) fn at(address: usize) -> Self {
        Self(address as *mut c_char)
    }

    fn range(&self, bytes: usize) -> HostRange {
        // SAFETY: the caller has room for this many bytes, and the range is used at once.
        unsafe { HostRange::new(self.0.cast(), bytes) }
    }
}

/// A text that ends with NUL, or null.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: the caller gave a text with its NUL, which stays during the call.
        (!self.0.is_null()).then(|| unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    pub(super) fn get(&self) -> Answer<&str> {
        let text = self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.ok_or(Code::INVALID_VALUE)
    }
}

/// Values that are read, or null.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Where it points, for values that may lie on the device.
    pub(super) fn address(&self) -> u64 {
        self.0 as u64
    }

    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The value at an index.
    pub(super) fn at(&self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller gave at least as many values as the call's other arguments say.
        let place = unsafe { self.0.add(index) };
        // SAFETY: as above; values of C structures may lie unaligned.
        Ok(unsafe { place.read_unaligned() })
    }
}

impl In<u8> {
    /// The first bytes.
    pub(super) fn bytes(&self, count: usize) -> Option<Vec<u8>> {
        // SAFETY: the caller gave this many bytes, which are read at once.
        (!self.0.is_null()).then(|| unsafe { HostRange::new(self.0, count) }.read())
    }
}

/// Memory of the host that a copy reads or writes, perhaps after the call.
#[repr(transparent)]
pub(super) struct Host(*mut u8);

impl Host {
    pub(super) fn address(&self) -> usize {
        self.0 as usize
    }

    pub(super) fn range(&self, bytes: usize) -> Answer<HostRange> {
        if self.0.is_null() && bytes > 0 {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: CUDA asks of callers that the memory stays until the copy is done.
        Ok(unsafe { HostRange::new(self.0, bytes) })
    }
}

/// A function of the host and what it is called with.
pub(super) struct HostFunction {
    function: extern "C" fn(*mut c_void),
    argument: usize,
}

impl HostFunction {
    pub(super) fn new(function: extern "C" fn(*mut c_void), argument: u64) -> Self {
        Self { function, argument: argument as usize }
    }

    pub(super) fn call(&self) {
        (self.function)(self.argument as *mut c_void);
    }
}

/// Gathers the parameters of a kernel: an array of pointers, one for each, as `cuLaunchKernel` takes them.
pub(super) fn gather(pointers: &In<In<u8>>, layout: &[(u32, u32)], total: u32) -> Answer<Vec<u8>> {
    let mut bytes = vec![0; total as usize];
    for (index, (offset, size)) in layout.iter().enumerate() {
        let value = pointers.at(index)?.bytes(*size as usize).ok_or(Code::INVALID_VALUE)?;
        bytes[*offset as usize..][..*size as usize].copy_from_slice(&value);
    }
    Ok(bytes)
}

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

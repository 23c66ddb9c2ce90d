//! What the plan's steps do with numbers, for each instruction set. Loops are written once, in plain Rust over blocks
//! of [`LANES`] numbers, and compiled once per instruction set; only the matrix product is written by hand for each.
//!
//! Every instruction set gives the same bits: sums run in an order that the lengths alone decide, and where one
//! instruction set fuses a product and a sum, `mul_add` fuses them on all.
#![expect(
    unsafe_code,
    reason = "functions for one instruction set are called after the CPU was asked for it"
)]

mod line;
mod map;
pub(crate) mod math;
mod matmul;
#[cfg(target_arch = "x86_64")]
mod matmul_avx2;
#[cfg(target_arch = "x86_64")]
mod matmul_avx512;
mod small;

pub(crate) use line::{LineOp, MAX_LINE, line};
pub(crate) use map::{Binary, CHUNK, Instruction, MAX_REGISTERS, Registers, Unary, evaluate};
pub(crate) use matmul::{Begin, PANEL, Packed, Rows, Sums, multiply};
pub(crate) use small::{Small, small};

use tidepool_kernels::Isa;

/// Numbers that loops take at once: one register of AVX-512, two of AVX2.
pub(crate) const LANES: usize = 16;

/// An instruction set that this CPU has; there is no other way to make one than to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu(Isa);

impl Cpu {
    /// The fastest.
    pub(crate) fn detect() -> Self {
        Self(Isa::detect())
    }

    /// Every one, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        Isa::available().into_iter().map(Self).collect()
    }

    /// Which it is.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

/// Makes a function that runs an always inlined body with the instructions that the CPU has.
macro_rules! on_cpu {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        pub(crate) fn $name(cpu: $crate::cpu::Cpu, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body($($arg),*);
            }
            match cpu.isa() {
                #[cfg(target_arch = "x86_64")]
                tidepool_kernels::Isa::Avx512 => {
                    // SAFETY: a `Cpu` is only made of an instruction set that was found here.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                tidepool_kernels::Isa::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2($($arg),*) }
                }
                _ => $body($($arg),*),
            }
        }
    };
}
pub(crate) use on_cpu;

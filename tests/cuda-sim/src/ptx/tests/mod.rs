//! Tests of the interpreter as a whole: PTX text in, memory out.

mod arithmetic;
mod checks;
mod control;
mod conversions;
mod golden;
mod hostile;
mod memory;
mod warps;

use std::sync::Mutex;

use super::{Access, Counts, DEFAULT_INSTRUCTION_LIMIT, Fault, FaultKind, Launch, Memory, Module, run};

/// Where the first allocation of a test lies; the others follow with gaps between.
const BASE: u64 = 0x10_0000;
const GAP: u64 = 0x1000;

/// Device memory of a test: allocations with a mark for each byte that was written.
#[derive(Default)]
struct Device {
    allocations: Mutex<Vec<Allocation>>,
}

struct Allocation {
    start: u64,
    bytes: Vec<Option<u8>>,
    freed: bool,
}

impl Device {
    fn add(&self, bytes: Vec<Option<u8>>) -> u64 {
        let mut all = self.allocations.lock().unwrap();
        let start = all.last().map_or(BASE, |a| (a.start + a.bytes.len() as u64 + GAP).next_multiple_of(GAP));
        all.push(Allocation { start, bytes, freed: false });
        start
    }

    /// An allocation that holds `values`.
    fn put<T: Plain>(&self, values: &[T]) -> u64 {
        self.add(values.iter().flat_map(|v| v.bytes()).map(Some).collect())
    }

    /// An allocation that nobody has written.
    fn empty(&self, bytes: usize) -> u64 {
        self.add(vec![None; bytes])
    }

    fn free(&self, address: u64) {
        let mut all = self.allocations.lock().unwrap();
        all.iter_mut().find(|a| a.start == address).unwrap().freed = true;
    }

    fn get<T: Plain>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.load(address, &mut bytes).unwrap();
        bytes.chunks(size_of::<T>()).map(T::from_bytes).collect()
    }

    fn with<R>(
        &self,
        address: u64,
        length: usize,
        then: impl FnOnce(&mut [Option<u8>]) -> Result<R, Access>,
    ) -> Result<R, Access> {
        let mut all = self.allocations.lock().unwrap();
        let bytes = length as u64;
        let below = all.iter_mut().rev().find(|a| a.start <= address);
        let nearest = below.as_ref().map(|a| (a.start, a.bytes.len() as u64));
        let outside = Access::OutOfBounds { address, bytes, nearest };
        let Some(allocation) = below else { return Err(outside) };
        let at = (address - allocation.start) as usize;
        let freed = allocation.freed;
        match allocation.bytes.get_mut(at..at + length) {
            None => Err(outside),
            Some(_) if freed => Err(Access::Freed { address, bytes }),
            Some(found) => then(found),
        }
    }
}

impl Memory for Device {
    fn load(&self, address: u64, into: &mut [u8]) -> Result<(), Access> {
        let bytes = into.len() as u64;
        self.with(address, into.len(), |found| {
            for (to, from) in into.iter_mut().zip(found) {
                *to = from.ok_or(Access::Uninitialised { address, bytes })?;
            }
            Ok(())
        })
    }

    fn store(&self, address: u64, from: &[u8]) -> Result<(), Access> {
        self.with(address, from.len(), |found| {
            found.iter_mut().zip(from).for_each(|(to, from)| *to = Some(*from));
            Ok(())
        })
    }

    fn atomic(&self, address: u64, bytes: usize, change: &mut dyn FnMut(u64) -> u64) -> Result<u64, Access> {
        let mut old = [0; 8];
        self.load(address, &mut old[..bytes])?;
        let old = u64::from_le_bytes(old);
        self.store(address, &change(old).to_le_bytes()[..bytes])?;
        Ok(old)
    }
}

/// Numbers that tests put into memory.
trait Plain: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty)*) => {
        $(impl Plain for $t {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        })*
    };
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// A parameter of a kernel.
#[derive(Clone)]
enum Arg {
    Long(u64),
    Word(u32),
    Bytes(Vec<u8>),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Long(value)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Word(value)
    }
}

/// A loaded module over a device, with its variables placed.
struct Bench {
    module: Module,
    device: Device,
    globals: Vec<u64>,
}

impl Bench {
    fn new(text: &str) -> Self {
        let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let device = Device::default();
        let globals: Vec<u64> = module.globals().iter().map(|g| device.empty(g.size as usize)).collect();
        for (global, &address) in module.globals().iter().zip(&globals) {
            device.store(address, &global.image(&globals)).unwrap();
        }
        Self { module, device, globals }
    }

    fn launch(&self, kernel: &str, grid: u32, block: u32, args: &[Arg]) -> Result<Counts, Box<Fault>> {
        self.launch_with(kernel, [grid, 1, 1], [block, 1, 1], 0, args, DEFAULT_INSTRUCTION_LIMIT)
    }

    fn launch_with(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        args: &[Arg],
        limit: u64,
    ) -> Result<Counts, Box<Fault>> {
        let kernel = self.module.kernel(kernel).unwrap();
        let mut params = vec![0; kernel.param_bytes as usize];
        assert_eq!(args.len(), kernel.params.len());
        for (arg, param) in args.iter().zip(&kernel.params) {
            let bytes = match arg {
                Arg::Long(value) => value.to_le_bytes().to_vec(),
                Arg::Word(value) => value.to_le_bytes().to_vec(),
                Arg::Bytes(bytes) => bytes.clone(),
            };
            let at = param.offset as usize;
            params[at..at + param.size as usize].copy_from_slice(&bytes);
        }
        let launch = Launch { grid, block, dynamic_shared, params: &params };
        run(&self.module, kernel, &launch, &self.device, &self.globals, limit)
    }

    /// The fault of a launch that must not succeed.
    fn fault(&self, kernel: &str, grid: u32, block: u32, args: &[Arg]) -> Box<Fault> {
        self.launch(kernel, grid, block, args).unwrap_err()
    }
}

/// A module with one kernel `k` of the given parameters (`.u64` unless said) and body.
fn kernel(params: &[&str], body: &str) -> String {
    let params: Vec<String> = params.iter().map(|p| format!(".param {p}")).collect();
    format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n.visible .entry k({})\n{{\n{REGISTERS}{body}\n}}\n",
        params.join(", ")
    )
}

const REGISTERS: &str = ".reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<40>; .reg .b64 %d<40>; .reg .f32 %f<20>; .reg .f64 %fd<20>;\n";

/// What one register holds after `body`, with some registers set before. Registers are named by their
/// kinds: `%p` predicates, `%h` 16 bits, `%r` 32, `%d` 64, `%f` f32, `%fd` f64.
fn value(body: &str, result: &str, inputs: &[(&str, u64)]) -> u64 {
    let kind = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let mut before = String::new();
    for (index, (name, _)) in inputs.iter().enumerate() {
        before += &match kind(name).as_str() {
            "%p" => format!("ld.param.u32 %r39, [i{index}]; setp.ne.u32 {name}, %r39, 0;\n"),
            "%h" => format!("ld.param.u16 {name}, [i{index}];\n"),
            "%r" => format!("ld.param.u32 {name}, [i{index}];\n"),
            "%f" => format!("ld.param.f32 {name}, [i{index}];\n"),
            "%fd" => format!("ld.param.f64 {name}, [i{index}];\n"),
            _ => format!("ld.param.u64 {name}, [i{index}];\n"),
        };
    }
    let after = match kind(result).as_str() {
        "%p" => format!("selp.b32 %r38, 1, 0, {result}; st.global.u32 [%d39], %r38;"),
        "%h" => format!("st.global.u16 [%d39], {result};"),
        "%r" => format!("st.global.u32 [%d39], {result};"),
        "%f" => format!("st.global.f32 [%d39], {result};"),
        "%fd" => format!("st.global.f64 [%d39], {result};"),
        _ => format!("st.global.u64 [%d39], {result};"),
    };
    let params: Vec<String> = std::iter::once(".u64 out".to_owned())
        .chain((0..inputs.len()).map(|i| format!(".u64 i{i}")))
        .collect();
    let params: Vec<&str> = params.iter().map(String::as_str).collect();
    let bench =
        Bench::new(&kernel(&params, &format!("ld.param.u64 %d39, [out];\n{before}{body}\n{after}\nret;")));
    let out = bench.device.put(&[0_u64]);
    let args: Vec<Arg> = std::iter::once(out).chain(inputs.iter().map(|i| i.1)).map(Arg::from).collect();
    bench.launch("k", 1, 1, &args).unwrap_or_else(|fault| panic!("{fault}"));
    bench.device.get::<u64>(out, 1)[0]
}

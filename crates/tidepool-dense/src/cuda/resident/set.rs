//! A set of resident rows: built once, beside those that are in use, and never changed.
#![expect(unsafe_code, reason = "kernels are launched with addresses of buffers that the set owns")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidepool_types::{RowFormat, TableVersion};

use super::{
    Inventory, ResidentError,
    budget::{Fit, LOAD},
    inventory::{Hits, Place, Segment, kept},
    table::{Key, KeyTable},
};
use crate::cuda::{
    CudaDevice, CudaError,
    compile::Compiler,
    memory::{ALIGN, DeviceBuffer, Layout, Pinned},
    module::{Arguments, Kernel, Launch, Module},
    stream::Stream,
};

/// Threads of a block, as the kernels have them.
const THREADS: u32 = 128;
/// What stands for no row.
const MISSING: u32 = u32::MAX;
/// Bytes of the head before those of the tables, and of one table.
const HEAD_BYTES: usize = 32;
const TABLE_BYTES: usize = 16;
/// Rows that are made ready for the device at once.
const CHUNK_BYTES: usize = 16 << 20;
/// How long the device may take for a step of the building.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a set is built.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidentOptions {
    /// Bytes of the device that it may take, the hash table included. While it takes the place of another set, that one's
    /// come on top: the device needs room for two budgets.
    pub budget_bytes: u64,
    /// How full the hash table is at most, from 0.1 to 0.7: fuller takes less room and more probes.
    pub load: f64,
    /// What ids are mixed with; best random, since nobody who chooses ids should know it.
    pub seed: u64,
    /// The folder of compiled kernels, if any.
    pub cache: Option<PathBuf>,
}

impl ResidentOptions {
    /// With the usual load.
    #[must_use]
    pub fn new(budget_bytes: u64, seed: u64) -> Self {
        Self { budget_bytes, load: LOAD, seed, cache: None }
    }
}

/// Resident rows of any number of tables, and where they are.
pub struct ResidentSet {
    device: Arc<CudaDevice>,
    stream: Mutex<Stream>,
    inventory: Arc<Inventory>,
    find: Kernel,
    head: DeviceBuffer,
    slots: DeviceBuffer,
    rows: DeviceBuffer,
}

impl std::fmt::Debug for ResidentSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResidentSet")
            .field("told", &self.told())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl ResidentSet {
    /// Builds a set of what of `segments` fits into the budget, beside what is in use. What was decided is in
    /// [`told`](Self::told). It takes as long as the rows take to the device: call it off the threads that serve.
    ///
    /// # Errors
    /// [`ResidentError`] names the table, or what the device failed over; nothing is left on the device then.
    pub fn build(
        device: &Arc<CudaDevice>,
        segments: &[Segment<'_>],
        options: &ResidentOptions,
    ) -> Result<Self, ResidentError> {
        let inventory = Inventory::new(segments, options)?;
        let keys = inventory.keys();
        let kept = kept(segments, inventory.told());
        let ids: Vec<&[u64]> = kept.iter().map(|(segment, _)| segment.ids).collect();
        let stream = Stream::new(device)?;
        let module = Module::load(
            device,
            "resident",
            &Compiler::new(device.capability(), options.cache.as_deref())?
                .ptx("resident", include_str!("../kernels/resident.cu"))?,
        )?;

        let mut layout = Layout::default();
        let strides: Vec<usize> =
            kept.iter().map(|(s, _)| s.format.row_bytes(s.dim).next_multiple_of(4)).collect();
        let places: Vec<usize> =
            ids.iter().zip(&strides).map(|(ids, stride)| layout.push(ids.len() * stride)).collect();
        let head_bytes = HEAD_BYTES + TABLE_BYTES * kept.len();
        check_budget([layout.bytes(), keys.bytes(), head_bytes], options.budget_bytes)?;
        let rows = DeviceBuffer::new(device, layout.bytes(), "resident rows")?;
        let slots = DeviceBuffer::new(device, keys.bytes(), "the hash table of resident rows")?;
        let head = DeviceBuffer::new(device, head_bytes, "the head of resident rows")?;
        let mut bytes = Vec::with_capacity(head.bytes());
        for number in [slots.address(), keys.slots() as u64, keys.seed()] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(keys.probes().to_le_bytes());
        bytes.extend(as_u32(kept.len()).to_le_bytes());
        for ((ids, place), stride) in ids.iter().zip(&places).zip(&strides) {
            bytes.extend((rows.address() + *place as u64).to_le_bytes());
            bytes.extend(as_u32(ids.len()).to_le_bytes());
            bytes.extend(as_u32(*stride).to_le_bytes());
        }
        stream.upload(&bytes, &head, 0)?;
        // One for all that is brought: to pin memory costs more than to fill it.
        let largest = layout.bytes().max(8 * ids.iter().map(|ids| ids.len()).max().unwrap_or(0));
        let mut staging = Pinned::new(device, largest.min(CHUNK_BYTES), "resident rows on their way")?;
        for ((segment, _), place) in kept.iter().zip(&places) {
            upload_rows(&stream, &mut staging, segment, &rows, *place)?;
        }
        insert(&stream, &mut staging, &module, &head, keys, &ids)?;
        let find = module.kernel("resident_find")?;
        let (device, stream) = (device.clone(), Mutex::new(stream));
        let inventory = Arc::new(inventory);
        Ok(Self { device, stream, inventory, find, head, slots, rows })
    }

    /// What is resident, as the host knows it.
    #[must_use]
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }

    /// [`Inventory::told`].
    #[must_use]
    pub fn told(&self) -> &[Fit] {
        self.inventory.told()
    }

    /// Bytes that the set takes on the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.head.bytes() + self.slots.bytes() + self.rows.bytes()) as u64
    }

    /// [`Inventory::number`].
    #[must_use]
    pub fn number(&self, table: &TableVersion) -> Option<u32> {
        self.inventory.number(table)
    }

    /// [`Inventory::rows_of`].
    #[must_use]
    pub fn rows_of(&self, number: u32) -> Option<(RowFormat, u32)> {
        self.inventory.rows_of(number)
    }

    /// [`Inventory::place`].
    ///
    /// # Panics
    /// When the set has no table of this number.
    pub fn place(&self, number: u32, ids: &[u64], places: &mut Vec<Place>) {
        self.inventory.place(number, ids, places);
    }

    /// [`Inventory::hits`].
    #[must_use]
    pub fn hits(&self) -> Vec<Hits> {
        self.inventory.hits()
    }

    /// The keys, as the host has them.
    #[must_use]
    pub fn keys(&self) -> &KeyTable {
        self.inventory.keys()
    }

    /// The rows of these keys, found on the device: what [`KeyTable::find`] finds here. For checks and tests; a batch
    /// stages its keys instead.
    ///
    /// # Errors
    /// When the device fails.
    pub fn find(&self, keys: &[Key]) -> Result<Vec<Option<u32>>, CudaError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let (launch, found) = self.finding(&stream, keys)?;
        // SAFETY: `finding` has given it room for all keys, and `found` outlives the download, which waits.
        unsafe { launch.launch.ask(&stream) }?;
        let bytes = stream.download(&found, launch.rows_at, 4 * keys.len())?;
        let rows = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(rows.map(|row| (row != MISSING).then_some(row)).collect())
    }

    /// How long the device takes to find these keys so many times, the launches included: for benches.
    ///
    /// # Errors
    /// When the device fails.
    pub fn find_timed(&self, keys: &[Key], times: u32) -> Result<Duration, CudaError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let (launch, found) = self.finding(&stream, keys)?;
        // SAFETY: as in `find`; the fence below is waited for before `found` goes.
        unsafe { launch.launch.ask(&stream) }?;
        stream.fence(&mut [])?.wait(DEADLINE)?;
        let begun = Instant::now();
        for _ in 0..times {
            // SAFETY: as above.
            unsafe { launch.launch.ask(&stream) }?;
        }
        stream.fence(&mut [])?.wait(DEADLINE)?;
        drop(found);
        Ok(begun.elapsed())
    }

    /// The number of its device.
    pub(crate) fn ordinal(&self) -> u32 {
        self.device.ordinal()
    }

    /// The head's address: what a batch names the set by.
    pub(crate) fn address(&self) -> u64 {
        self.head.address()
    }

    /// A launch that finds keys in a buffer of their own.
    fn finding(&self, stream: &Stream, keys: &[Key]) -> Result<(Finding, DeviceBuffer), CudaError> {
        let mut layout = Layout::default();
        let head_at = layout.push(16);
        let ids_at = layout.push(8 * keys.len());
        let tables_at = layout.push(4 * keys.len());
        let rows_at = layout.push(4 * keys.len());
        let mut bytes = vec![0; rows_at];
        bytes[..8].copy_from_slice(&self.address().to_le_bytes());
        bytes[8..16].copy_from_slice(&(keys.len() as u64).to_le_bytes());
        for (at, key) in keys.iter().enumerate() {
            bytes[ids_at + 8 * at..][..8].copy_from_slice(&key.id.to_le_bytes());
            bytes[tables_at + 4 * at..][..4].copy_from_slice(&key.table.to_le_bytes());
        }
        let buffer = DeviceBuffer::new(stream.device(), layout.bytes(), "keys to find")?;
        stream.upload(&bytes, &buffer, 0)?;
        let places = [head_at, ids_at, tables_at, rows_at].map(|at| buffer.address() + at as u64);
        let launch = find_launch(&self.find, as_u32(keys.len()), places);
        Ok((Finding { launch, rows_at }, buffer))
    }
}

struct Finding {
    launch: Launch,
    rows_at: usize,
}

/// Finds up to `keys` keys; `places` are the addresses of the staged head, the ids, the tables' numbers and the rows.
pub(crate) fn find_launch(kernel: &Kernel, keys: u32, places: [u64; 4]) -> Launch {
    let [head, ids, tables, rows] = places;
    let arguments = Arguments::default().address(head).address(ids).address(tables).address(rows);
    Launch::flat("resident_find", kernel, keys.into(), THREADS, arguments)
}

/// The source of the kernels, for who captures a find.
pub(crate) fn source() -> &'static str {
    include_str!("../kernels/resident.cu")
}

/// Refuses regions that take more than the budget, before any of them is allocated.
fn check_budget(regions: [usize; 3], budget_bytes: u64) -> Result<(), ResidentError> {
    let bytes: usize = regions.iter().map(|bytes| (*bytes).max(1).next_multiple_of(ALIGN)).sum();
    let bytes = bytes as u64;
    if bytes <= budget_bytes { Ok(()) } else { Err(ResidentError::Budget { bytes, budget_bytes }) }
}

/// Brings the rows of a segment to the device, each at its stride.
fn upload_rows(
    stream: &Stream,
    staging: &mut Pinned,
    segment: &Segment<'_>,
    to: &DeviceBuffer,
    at: usize,
) -> Result<(), CudaError> {
    let row_bytes = segment.format.row_bytes(segment.dim);
    let stride = row_bytes.next_multiple_of(4);
    let per_chunk = (CHUNK_BYTES / stride).max(1);
    for (number, piece) in segment.rows.chunks(per_chunk * row_bytes).enumerate() {
        let bytes = piece.len() / row_bytes * stride;
        let into = &mut staging.bytes_mut()?[..bytes];
        for (into, row) in into.chunks_exact_mut(stride).zip(piece.chunks_exact(row_bytes)) {
            let (head, rest) = into.split_at_mut(row_bytes);
            head.copy_from_slice(row);
            rest.fill(0);
        }
        stream.copy_in_at(staging, to, at + number * per_chunk * stride, bytes)?;
        stream.fence(&mut [&mut *staging])?.wait(DEADLINE)?;
    }
    Ok(())
}

/// Puts all keys into the slots.
fn insert(
    stream: &Stream,
    staging: &mut Pinned,
    module: &Arc<Module>,
    head: &DeviceBuffer,
    keys: &KeyTable,
    ids: &[&[u64]],
) -> Result<(), ResidentError> {
    let device = stream.device();
    let arguments = Arguments::default().address(head.address());
    let clear = Launch::flat(
        "resident_clear",
        &module.kernel("resident_clear")?,
        keys.slots() as u64,
        THREADS,
        arguments,
    );
    // SAFETY: the head, which the caller has uploaded, has the address and number of the slots.
    unsafe { clear.ask(stream) }?;
    let failed = DeviceBuffer::new(device, 4, "what was not inserted")?;
    stream.zero(&failed)?;
    let kernel = module.kernel("resident_insert")?;
    let per_chunk = CHUNK_BYTES / 8;
    let most = ids.iter().map(|ids| ids.len().min(per_chunk)).max().unwrap_or(0);
    let uploaded = DeviceBuffer::new(device, 8 * most, "ids to insert")?;
    for (table, ids) in (0u32..).zip(ids) {
        for (number, piece) in ids.chunks(per_chunk).enumerate() {
            let into = staging.bytes_mut()?.chunks_exact_mut(8);
            into.zip(piece).for_each(|(into, id)| into.copy_from_slice(&id.to_le_bytes()));
            stream.copy_in(staging, &uploaded, 8 * piece.len())?;
            let arguments = Arguments::default()
                .address(head.address())
                .address(uploaded.address())
                .u32(table)
                .u32(as_u32(number * per_chunk))
                .u32(as_u32(piece.len()))
                .address(failed.address());
            let launch = Launch::flat("resident_insert", &kernel, piece.len() as u64, THREADS, arguments);
            // SAFETY: as above; the ids are copied before it in the stream, and stay until the fence.
            unsafe { launch.ask(stream) }?;
            stream.fence(&mut [&mut *staging])?.wait(DEADLINE)?;
        }
    }
    let bytes = stream.download(&failed, 0, 4)?;
    match u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) {
        0 => Ok(()),
        lost => Err(ResidentError::Lost { lost, keys: keys.keys() }),
    }
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

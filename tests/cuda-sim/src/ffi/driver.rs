//! The functions of `libcuda` that cudarc and this project call. Handles are numbers in the ABI: nobody follows them.
#![expect(unsafe_code, reason = "symbols have the names by which the real library is loaded")]
#![allow(non_snake_case, clippy::too_many_arguments, reason = "names and arguments are NVIDIA's")]

use std::{
    ffi::{c_char, c_void},
    sync::Arc,
};

use super::{
    DRIVER, number,
    pointers::{Host, HostFunction, In, Out, Text, TextOut, gather},
    start_pump,
};
use crate::{
    capture::CaptureMode,
    driver::{CaptureStatus, LaunchShape},
    error::Code,
    state::Answer,
};

macro_rules! calls {
    ($(fn $name:ident($($argument:ident: $of:ty),* $(,)?) $body:block)*) => {
        $(#[unsafe(no_mangle)] extern "C" fn $name($($argument: $of),*) -> u32 $body)*
    };
}

fn mode(number: u32) -> Answer<CaptureMode> {
    match number {
        0 => Ok(CaptureMode::Global),
        1 => Ok(CaptureMode::ThreadLocal),
        2 => Ok(CaptureMode::Relaxed),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// Tells of a function that exists and does nothing here but refuse.
fn refused(what: &str) -> u32 {
    let words = format!("the stand-in has no {what}");
    DRIVER.held().refuse(Code::NOT_SUPPORTED, words).0
}

// Start, devices and contexts.
calls! {
    fn cuInit(_flags: u32) { number(DRIVER.init()) }
    fn cuDriverGetVersion(version: Out<i32>) { version.give(Ok(DRIVER.version() as i32)) }
    fn cuGetErrorName(code: u32, text: Out<*const c_char>) {
        text.give(Code(code).name().map(|name| name.as_ptr().cast()).ok_or(Code::INVALID_VALUE))
    }
    fn cuGetErrorString(code: u32, text: Out<*const c_char>) {
        text.give(Code(code).words().map(|words| words.as_ptr().cast()).ok_or(Code::INVALID_VALUE))
    }
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) { device.give(DRIVER.device(ordinal).map(|d| d as i32)) }
    fn cuDeviceGetCount(count: Out<i32>) { count.give(DRIVER.device_count().map(|n| n as i32)) }
    fn cuDeviceGetName(name: TextOut, room: i32, device: i32) {
        number(DRIVER.device(device).map(|_| {
            name.set("Tidepool simulated device", room.max(0) as usize);
        }))
    }
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        uuid.give(DRIVER.device(device).map(|device| {
            let mut id = *b"tidepool-sim-000";
            id[15] = b'0' + (device % 10) as u8;
            id
        }))
    }
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        value.give(DRIVER.attribute(attribute, device))
    }
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        bytes.give(DRIVER.total_memory(device).map(|n| n as usize))
    }
    fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) { context.give(DRIVER.retain(device)) }
    fn cuDevicePrimaryCtxRelease_v2(device: i32) { number(DRIVER.release(device)) }
    fn cuCtxSetCurrent(context: u64) { number(DRIVER.set_current(context)) }
    fn cuCtxGetCurrent(context: Out<u64>) { context.give(DRIVER.current()) }
    fn cuCtxGetDevice(device: Out<i32>) { device.give(DRIVER.current_device().map(|d| d as i32)) }
    fn cuCtxSynchronize() { number(DRIVER.synchronize()) }
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        least.set(0);
        greatest.set(-5);
        0
    }
    fn cuCtxSetFlags(_flags: u32) { number(DRIVER.current_device().map(drop)) }
    fn cuCtxCreate_v4(_context: Out<u64>, _parameters: u64, _flags: u32, _device: i32) {
        refused("contexts but the primary ones")
    }
    fn cuCtxDestroy_v2(_context: u64) { refused("contexts but the primary ones") }
}

// Memory.
calls! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        number(DRIVER.memory_info().map(|(free_bytes, total_bytes)| {
            free.set(free_bytes as usize);
            total.set(total_bytes as usize);
        }))
    }
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) { address.give(DRIVER.allocate(bytes as u64)) }
    fn cuMemFree_v2(address: u64) { number(DRIVER.free(address)) }
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: u64) {
        address.give(DRIVER.allocate_async(bytes as u64, stream))
    }
    fn cuMemFreeAsync(address: u64, stream: u64) { number(DRIVER.free_async(address, stream)) }
    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: u32) {
        address.give(DRIVER.allocate_pinned(bytes).map(|range| range.address()))
    }
    fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) {
        address.give(DRIVER.allocate_pinned(bytes).map(|range| range.address()))
    }
    fn cuMemFreeHost(address: Host) { number(DRIVER.free_pinned(address.address())) }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, stream: u64) {
        number(from.range(bytes).and_then(|from| DRIVER.copy_in(to, from, stream)))
    }
    fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, stream: u64) {
        number(to.range(bytes).and_then(|to| DRIVER.copy_out(to, from, stream)))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
        number(DRIVER.copy_within(to, from, bytes as u64, stream))
    }
    fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) {
        number(from.range(bytes).and_then(|from| {
            DRIVER.at_once("cuMemcpyHtoD", |driver| driver.copy_in(to, from, 0))
        }))
    }
    fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) {
        number(to.range(bytes).and_then(|to| {
            DRIVER.at_once("cuMemcpyDtoH", |driver| driver.copy_out(to, from, 0))
        }))
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        number(DRIVER.at_once("cuMemcpyDtoD", |driver| driver.copy_within(to, from, bytes as u64, 0)))
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) {
        number(DRIVER.fill(to, &[value], count as u64, stream))
    }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64) {
        number(DRIVER.fill(to, &value.to_le_bytes(), count as u64, stream))
    }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64) {
        number(DRIVER.fill(to, &value.to_le_bytes(), count as u64, stream))
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        number(DRIVER.at_once("cuMemsetD8", |driver| driver.fill(to, &[value], count as u64, 0)))
    }
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        number(DRIVER.at_once("cuMemsetD32", |driver| driver.fill(to, &value.to_le_bytes(), count as u64, 0)))
    }
    fn cuMemHostGetDevicePointer_v2(_address: Out<u64>, _host: u64, _flags: u32) {
        refused("host memory under addresses of the device")
    }
    fn cuMemHostRegister_v2(_host: u64, _bytes: usize, _flags: u32) { refused("registered host memory") }
    fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: u32) { refused("managed memory") }
}

// Streams and events.
calls! {
    fn cuStreamCreate(stream: Out<u64>, flags: u32) { stream.give(DRIVER.create_stream(flags & 1 != 0, 0)) }
    fn cuStreamCreateWithPriority(stream: Out<u64>, flags: u32, priority: i32) {
        stream.give(DRIVER.create_stream(flags & 1 != 0, priority))
    }
    fn cuStreamGetPriority(stream: u64, priority: Out<i32>) { priority.give(DRIVER.stream_priority(stream)) }
    fn cuStreamDestroy_v2(stream: u64) { number(DRIVER.destroy_stream(stream)) }
    fn cuStreamSynchronize(stream: u64) { number(DRIVER.synchronize_stream(stream)) }
    fn cuStreamQuery(stream: u64) { number(DRIVER.query_stream(stream)) }
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) {
        if flags != 0 { refused("waits for external events") } else { number(DRIVER.wait_for(stream, event)) }
    }
    fn cuEventCreate(event: Out<u64>, flags: u32) { event.give(DRIVER.create_event(flags & 2 == 0)) }
    fn cuEventDestroy_v2(event: u64) { number(DRIVER.destroy_event(event)) }
    fn cuEventRecord(event: u64, stream: u64) { number(DRIVER.record(event, stream)) }
    fn cuEventQuery(event: u64) { number(DRIVER.query_event(event)) }
    fn cuEventSynchronize(event: u64) { number(DRIVER.synchronize_event(event)) }
    fn cuEventElapsedTime(time: Out<f32>, start: u64, end: u64) { time.give(DRIVER.elapsed(start, end)) }
    fn cuEventElapsedTime_v2(time: Out<f32>, start: u64, end: u64) { time.give(DRIVER.elapsed(start, end)) }
    fn cuLaunchHostFunc(stream: u64, function: extern "C" fn(*mut c_void), argument: u64) {
        start_pump();
        let function = HostFunction::new(function, argument);
        number(DRIVER.host_call(stream, Arc::new(move || function.call())))
    }
}

// Capture and graphs.
calls! {
    fn cuStreamBeginCapture_v2(stream: u64, of: u32) {
        number(mode(of).and_then(|mode| DRIVER.begin_capture(stream, mode)))
    }
    fn cuStreamEndCapture(stream: u64, graph: Out<u64>) {
        let ended = DRIVER.end_capture(stream);
        if ended.is_err() {
            graph.set(0);
        }
        graph.give(ended)
    }
    fn cuStreamIsCapturing(stream: u64, status: Out<u32>) {
        status.give(DRIVER.capture_status(stream).map(|status| match status {
            CaptureStatus::None => 0,
            CaptureStatus::Active(_) => 1,
            CaptureStatus::Invalidated(_) => 2,
        }))
    }
    fn cuStreamGetCaptureInfo(stream: u64, status: Out<u32>, id: Out<u64>) {
        status.give(DRIVER.capture_status(stream).map(|status| match status {
            CaptureStatus::None => 0,
            CaptureStatus::Active(capture) => {
                id.set(capture);
                1
            }
            CaptureStatus::Invalidated(capture) => {
                id.set(capture);
                2
            }
        }))
    }
    fn cuThreadExchangeStreamCaptureMode(of: Out<u32>) {
        let Some(wanted) = of.get() else { return Code::INVALID_VALUE.0 };
        of.give(mode(wanted).map(|mode| DRIVER.exchange_mode(mode) as u32))
    }
    fn cuGraphInstantiateWithFlags(executable: Out<u64>, graph: u64, _flags: u64) {
        executable.give(DRIVER.instantiate(graph))
    }
    fn cuGraphGetNodes(graph: u64, nodes: Out<u64>, count: Out<usize>) {
        if nodes.is_null() { count.give(DRIVER.graph_nodes(graph)) } else { refused("handles of nodes") }
    }
    fn cuGraphDestroy(graph: u64) { number(DRIVER.destroy_graph(graph)) }
    fn cuGraphExecDestroy(executable: u64) { number(DRIVER.destroy_executable(executable)) }
    fn cuGraphUpload(executable: u64, stream: u64) { number(DRIVER.upload(executable, stream)) }
    fn cuGraphLaunch(executable: u64, stream: u64) { number(DRIVER.launch_graph(executable, stream)) }
}

/// Options of `cuModuleLoadDataEx`: where the log of errors goes, and how much room there is.
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

// Modules and kernels.
calls! {
    fn cuModuleLoadData(module: Out<u64>, image: Text) {
        let image = image.bytes().ok_or(Code::INVALID_VALUE);
        module.give(image.and_then(|image| DRIVER.load_module(image)))
    }
    fn cuModuleLoadDataEx(module: Out<u64>, image: Text, count: u32, options: In<u32>, values: In<usize>) {
        let loaded = image.bytes().ok_or(Code::INVALID_VALUE).and_then(|image| DRIVER.load_module(image));
        if loaded.is_err() {
            let named = |wanted| (0..count as usize).find(|at| options.at(*at) == Ok(wanted));
            let value = |wanted| named(wanted).and_then(|at| values.at(at).ok());
            if let (Some(buffer), Some(room)) = (value(ERROR_LOG), value(ERROR_LOG_BYTES)) {
                TextOut::at(buffer).set(&DRIVER.last_fault(), room);
            }
        }
        module.give(loaded)
    }
    fn cuModuleLoad(module: Out<u64>, path: Text) {
        let image = path.get().and_then(|path| std::fs::read(path).map_err(|_| Code::FILE_NOT_FOUND));
        module.give(image.and_then(|image| DRIVER.load_module(&image)))
    }
    fn cuModuleUnload(module: u64) { number(DRIVER.unload(module)) }
    fn cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) {
        function.give(name.get().and_then(|name| DRIVER.get_function(module, name)))
    }
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: u64, name: Text) {
        number(name.get().and_then(|name| DRIVER.get_global(module, name)).map(|(start, length)| {
            address.set(start);
            bytes.set(length as usize);
        }))
    }
    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: u64) {
        value.give(DRIVER.function_attribute(attribute, function))
    }
    fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32) {
        number(DRIVER.set_function_attribute(function, attribute, value))
    }
    fn cuFuncSetCacheConfig(function: u64, _config: u32) { number(DRIVER.parameters(function).map(drop)) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: u64, threads: i32, shared: usize) {
        blocks.give(DRIVER.occupancy(function, threads.max(0) as u32, shared as u64))
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: u64, threads: i32, shared: usize, _flags: u32,
    ) {
        blocks.give(DRIVER.occupancy(function, threads.max(0) as u32, shared as u64))
    }
    fn cuLaunchKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        dynamic_shared: u32, stream: u64, parameters: In<In<u8>>, extra: In<u64>,
    ) {
        if !extra.is_null() {
            return refused("launches with `extra`");
        }
        let shape =
            LaunchShape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], dynamic_shared };
        number(DRIVER.parameters(function).and_then(|(layout, total)| {
            DRIVER.launch(function, shape, gather(&parameters, &layout, total)?, stream)
        }))
    }
    fn cuLaunchCooperativeKernel() { refused("cooperative launches") }
    fn cuProfilerStart() { 0 }
    fn cuProfilerStop() { 0 }
}

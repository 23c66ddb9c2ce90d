//! The stand-in as cudarc finds it: loaded by its names, through cudarc's own layers, unmodified.
//! `scripts/with-sim.sh cargo test -p tidepool-cuda-sim --test cudarc`. The device is one for all tests here, so they
//! take turns.
#![expect(unsafe_code, reason = "launches, captures and cudarc's lower layer are unsafe to call")]
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{
    ffi::{CString, c_char, c_void},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cudarc::{
    cublaslt::{Activation, CudaBlasLT, Matmul, MatmulConfig},
    driver::{CudaContext, LaunchConfig, PushKernelArg, result, sys},
    nvrtc::compile_ptx,
};

const KERNELS: &str = r#"
extern "C" __global__ void scale(float *values, float by, unsigned n) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) values[at] *= by;
}
extern "C" __global__ void sum(const float *values, float *out, unsigned n) {
    __shared__ float part[64];
    float own = 0;
    for (unsigned at = threadIdx.x; at < n; at += blockDim.x) own += values[at];
    part[threadIdx.x] = own;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *out = part[0];
}
"#;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the library is there, or every test here fails.
    let library = unsafe { sys::culib() };
    // SAFETY: the function has this type.
    let reset = unsafe { library.get::<extern "C" fn()>(b"tidepool_sim_reset") }.unwrap();
    reset();
    guard
}

fn counter(name: &str) -> u64 {
    // SAFETY: as above.
    let library = unsafe { sys::culib() };
    // SAFETY: the function has this type.
    let counter =
        unsafe { library.get::<unsafe extern "C" fn(*const c_char) -> u64>(b"tidepool_sim_counter") };
    let name = CString::new(name).unwrap();
    // SAFETY: the name outlives the call.
    unsafe { counter.unwrap()(name.as_ptr()) }
}

fn context() -> Arc<CudaContext> {
    CudaContext::new(0).unwrap()
}

#[test]
fn the_device_describes_itself() {
    let _alone = alone();
    let context = context();
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    assert_eq!(context.name().unwrap(), "Tidepool simulated device");
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    let (free, total) = context.mem_get_info().unwrap();
    assert!(free <= total && total == context.total_mem().unwrap());
    let missing = CudaContext::new(3).unwrap_err();
    assert_eq!(missing.0, sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
    assert!(missing.to_string().contains("invalid device ordinal"), "{missing}");
}

#[test]
fn kernels_of_nvrtc_run_on_memory_that_travels() {
    let _alone = alone();
    let context = context();
    let module = context.load_module(compile_ptx(KERNELS).unwrap()).unwrap();
    let (scale, sum) = (module.load_function("scale").unwrap(), module.load_function("sum").unwrap());
    let stream = context.new_stream().unwrap();
    let host: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let mut values = stream.clone_htod(&host).unwrap();
    let mut out = stream.alloc_zeros::<f32>(1).unwrap();
    let n = host.len() as u32;
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut values).arg(&2.0_f32).arg(&n);
    // SAFETY: the kernel takes these arguments, and stays inside of `n` values.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
    let mut launch = stream.launch_builder(&sum);
    launch.arg(&values).arg(&mut out).arg(&n);
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: as above; the block is as large as the kernel's shared memory.
    unsafe { launch.launch(shape) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [999_000.0]);
    assert_eq!(stream.clone_dtoh(&values).unwrap()[999], 1998.0);
    assert!(counter("instructions") > 10_000);
    context.check_err().unwrap();
}

#[test]
fn events_order_streams_and_pinned_memory_is_awaited() {
    let _alone = alone();
    let context = context();
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(256) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(3.0);
    let mut on_device = first.alloc_zeros::<f32>(256).unwrap();
    first.memcpy_htod(&pinned, &mut on_device).unwrap();
    second.wait(&first.record_event(None).unwrap()).unwrap();
    let copy = second.clone_dtod(&on_device).unwrap();
    assert_eq!(second.clone_dtoh(&copy).unwrap(), [3.0; 256]);
    // cudarc waits for the copy before it gives the memory out again.
    first.memcpy_htod(&pinned, &mut on_device).unwrap();
    pinned.as_mut_slice().unwrap().fill(4.0);
    context.synchronize().unwrap();
    assert_eq!(counter("faults"), 0);
}

#[test]
fn graphs_hold_kernels_and_matmuls_and_are_launched_again() {
    let _alone = alone();
    let context = context();
    // SAFETY: one stream uses all of the memory here.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let module = context.load_module(compile_ptx(KERNELS).unwrap()).unwrap();
    let scale = module.load_function("scale").unwrap();
    let blas = CudaBlasLT::new(stream.clone()).unwrap();
    let (a, b) =
        (stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0]).unwrap(), stream.clone_htod(&[1.0_f32; 4]).unwrap());
    let bias = stream.clone_htod(&[-100.0_f32, 0.5]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(4).unwrap();
    stream.synchronize().unwrap();
    let config = MatmulConfig {
        transa: false,
        transb: false,
        transc: false,
        m: 2,
        n: 2,
        k: 2,
        alpha: 1.0,
        lda: 2,
        ldb: 2,
        beta: 0.0,
        ldc: 2,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    };
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    // SAFETY: the matrices have these sizes.
    unsafe { blas.matmul(config, &a, &b, &mut out, Some(&bias), Some(&Activation::Relu)) }.unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut out).arg(&10.0_f32).arg(&4_u32);
    // SAFETY: there are four values.
    unsafe { launch.launch(LaunchConfig::for_num_elems(4)) }.unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.upload().unwrap();
    for _ in 0..3 {
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [0.0, 65.0, 0.0, 65.0]);
    }
    assert_eq!((counter("graph_launches"), counter("graph_nodes"), counter("matmuls_run")), (3, 6, 3));
}

#[test]
fn errors_of_the_device_come_with_the_next_wait_and_stay() {
    let _alone = alone();
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(compile_ptx(KERNELS).unwrap()).unwrap();
    let scale = module.load_function("scale").unwrap();
    let mut values = stream.alloc_zeros::<f32>(100).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut values).arg(&2.0_f32).arg(&101_u32);
    // SAFETY: it goes one past the end, which the stand-in finds and touches no memory for.
    unsafe { launch.launch(LaunchConfig::for_num_elems(101)) }.unwrap();
    let illegal = sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(stream.synchronize().unwrap_err().0, illegal);
    assert_eq!(context.synchronize().unwrap_err().0, illegal);
    // SAFETY: nobody uses what it would give.
    assert_eq!(unsafe { result::malloc_sync(64) }.unwrap_err().0, illegal);
}

#[test]
fn host_functions_are_called_by_the_device() {
    static CALLED: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());
    unsafe extern "C" fn call(argument: *mut c_void) {
        *CALLED.0.lock().unwrap() = argument as usize;
        CALLED.1.notify_all();
    }
    let _alone = alone();
    let context = context();
    let stream = context.new_stream().unwrap();
    // SAFETY: the stream is alive, and the function follows no pointer.
    unsafe { result::stream::launch_host_function(stream.cu_stream(), call, 5 as *mut c_void) }.unwrap();
    let waits =
        CALLED.1.wait_timeout_while(CALLED.0.lock().unwrap(), Duration::from_secs(30), |found| *found == 0);
    assert_eq!(*waits.unwrap().0, 5);
}

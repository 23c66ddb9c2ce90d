//! The C ABI of the stand-in: thin functions over [`Driver`], which knows no pointers.

mod blas;
mod control;
mod driver;
mod pointers;

use std::sync::{LazyLock, Once};

use crate::{driver::Driver, error::Code, settings::Settings, state::Answer};

/// The driver of this process. However many names the library is loaded under, it is one file, so there is one.
static DRIVER: LazyLock<Driver> = LazyLock::new(|| match Settings::read(|name| std::env::var(name).ok()) {
    Ok(settings) => {
        if settings.report.is_some() {
            control::report_at_exit();
        }
        Driver::new(settings)
    }
    Err(problem) => {
        eprintln!("tidepool-cuda-sim: {problem}");
        std::process::abort();
    }
});

/// The number that C gets for an answer.
fn number(answer: Answer<()>) -> u32 {
    answer.map_or_else(|code: Code| code.0, |()| 0)
}

/// Starts the thread that calls host functions, once.
fn start_pump() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let thread = std::thread::Builder::new().name("tidepool-sim-host".into());
        if let Err(problem) = thread.spawn(|| DRIVER.pump()) {
            eprintln!("tidepool-cuda-sim: no thread for host functions: {problem}");
            std::process::abort();
        }
    });
}

//! What the simulated device is like: read from `TIDEPOOL_SIM_*` once, changed by the functions of `ffi::control`.

use std::path::PathBuf;

/// In which order, and how soon, queued work is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Nothing runs before something waits for it, and then only what that needs: the latest moment that CUDA allows.
    Lazy,
    /// Every call of the driver first runs a few operations of streams drawn by this seed.
    Random(u64),
}

/// The device and the driver that are played.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many devices there are, all alike.
    pub devices: u32,
    /// Memory of each device in bytes.
    pub memory_bytes: u64,
    /// As `cuDriverGetVersion` gives it: 12080 is CUDA 12.8.
    pub driver_version: u32,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// When work is run.
    pub schedule: Schedule,
    /// Where the counters are written when the process exits.
    pub report: Option<PathBuf>,
    /// The file in which orders of another process come.
    pub orders: Option<PathBuf>,
    /// The allocation, counted from one, that finds no memory.
    pub fail_allocation: Option<u64>,
    /// The kernel or matmul, counted from one, that fails when it runs.
    pub fail_launch: Option<u64>,
    /// The launch, counted from one, that the driver refuses when it is asked for; the context goes on.
    pub refuse_launch: Option<u64>,
    /// The call that takes the device away, counted from one over launches, copies and graph launches.
    pub lose_device: Option<u64>,
}

impl Default for Settings {
    /// A device of 16 GiB and compute capability 8.0 under a driver of CUDA 12.8, without faults.
    fn default() -> Self {
        Self {
            devices: 1,
            memory_bytes: 16 << 30,
            driver_version: 12080,
            compute_capability: (8, 0),
            schedule: Schedule::Lazy,
            report: None,
            orders: None,
            fail_allocation: None,
            fail_launch: None,
            refuse_launch: None,
            lose_device: None,
        }
    }
}

impl Settings {
    /// Reads the environment through `get`, so that tests need no environment.
    ///
    /// # Errors
    /// The name of a variable that has no sense, and its value.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut settings = Self::default();
        let number = |name: &str| -> Result<Option<u64>, String> {
            let Some(text) = get(name) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| format!("{name} = {text:?} is not a number"))
        };
        let small = |name: &str, default: u32| -> Result<u32, String> {
            let value = number(name)?.unwrap_or(u64::from(default));
            u32::try_from(value).map_err(|_| format!("{name} = {value} is too large"))
        };
        settings.devices = small("TIDEPOOL_SIM_DEVICES", settings.devices)?;
        settings.driver_version = small("TIDEPOOL_SIM_DRIVER_VERSION", settings.driver_version)?;
        settings.memory_bytes = number("TIDEPOOL_SIM_MEMORY_BYTES")?.unwrap_or(settings.memory_bytes);
        settings.fail_allocation = number("TIDEPOOL_SIM_FAIL_ALLOCATION")?;
        settings.fail_launch = number("TIDEPOOL_SIM_FAIL_LAUNCH")?;
        settings.lose_device = number("TIDEPOOL_SIM_LOSE_DEVICE")?;
        settings.report = get("TIDEPOOL_SIM_REPORT").map(PathBuf::from);
        settings.orders = get("TIDEPOOL_SIM_ORDERS").map(PathBuf::from);
        if let Some(text) = get("TIDEPOOL_SIM_COMPUTE_CAPABILITY") {
            let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            settings.compute_capability =
                parts.ok_or_else(|| format!("TIDEPOOL_SIM_COMPUTE_CAPABILITY = {text:?} is not like 8.0"))?;
        }
        if let Some(text) = get("TIDEPOOL_SIM_SCHEDULE") {
            settings.schedule = match text.strip_prefix("random:").map(str::parse) {
                Some(Ok(seed)) => Schedule::Random(seed),
                None if text == "lazy" => Schedule::Lazy,
                _ => return Err(format!("TIDEPOOL_SIM_SCHEDULE = {text:?} is neither lazy nor random:SEED")),
            };
        }
        Ok(settings)
    }

    /// Changes one by its name, or asks for a fault: `memory_bytes`, `driver_version`, `devices`, `compute_capability` (80 is
    /// 8.0), `seed` (of the random schedule), `lazy`; `fail_allocation`, `fail_launch`, `refuse_launch`, `lose_device`,
    /// each with how many calls from now, nought for never. Whether there is one of that name.
    pub(crate) fn set(&mut self, name: &str, value: u64) -> bool {
        let small = value.min(u64::from(u32::MAX)) as u32;
        let after = (value > 0).then_some(value);
        match name {
            "memory_bytes" => self.memory_bytes = value,
            "driver_version" => self.driver_version = small,
            "devices" => self.devices = small,
            "compute_capability" => self.compute_capability = (small / 10, small % 10),
            "seed" => self.schedule = Schedule::Random(value),
            "lazy" => self.schedule = Schedule::Lazy,
            "fail_allocation" => self.fail_allocation = after,
            "fail_launch" => self.fail_launch = after,
            "refuse_launch" => self.refuse_launch = after,
            "lose_device" => self.lose_device = after,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_and_nonsense_is_named() {
        let read = |name: &'static str, value: &'static str| {
            Settings::read(|asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(read("TIDEPOOL_SIM_MEMORY_BYTES", "4096").unwrap().memory_bytes, 4096);
        assert_eq!(read("TIDEPOOL_SIM_SCHEDULE", "random:7").unwrap().schedule, Schedule::Random(7));
        assert_eq!(read("TIDEPOOL_SIM_COMPUTE_CAPABILITY", "9.0").unwrap().compute_capability, (9, 0));
        let error = read("TIDEPOOL_SIM_SCHEDULE", "random:x").unwrap_err();
        assert!(error.contains("TIDEPOOL_SIM_SCHEDULE"), "{error}");
        assert!(read("TIDEPOOL_SIM_DEVICES", "two").is_err());
    }
}

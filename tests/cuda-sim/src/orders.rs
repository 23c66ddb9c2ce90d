//! What another process asks of the stand-in: a file that every call looks for, with one order a line, which is removed once
//! it was followed. So a test can let the device of a server break down that it started as a process of its own.

use std::{fs, io, path::Path};

use crate::{error::Code, state::State};

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    /// `NAME VALUE`, as [`Settings::set`](crate::Settings) has them.
    Set(String, u64),
    /// `lose CODE`: every call returns this from now on.
    Lose(u32),
    /// `hang 1`: nothing runs any more; `hang 0`: it does again.
    Hang(bool),
}

impl Order {
    fn read(line: &str) -> Option<Self> {
        let (name, value) = line.split_once(' ')?;
        let value: u64 = value.parse().ok()?;
        match (name, value) {
            ("lose", code) => u32::try_from(code).ok().map(Self::Lose),
            ("hang", 0 | 1) => Some(Self::Hang(value == 1)),
            ("hang", _) => None,
            _ => Some(Self::Set(name.to_owned(), value)),
        }
    }
}

impl State {
    /// Follows the orders that wait, if the settings name a file for them; whether there were any. An order that is none, and a
    /// file that cannot be read or removed, end the process: a test that asked for a fault and got none would show nothing.
    pub(crate) fn follow_orders(&mut self) -> bool {
        let Some(path) = self.settings.orders.clone() else { return false };
        match self.follow(&path) {
            Ok(found) => found,
            Err(problem) => {
                eprintln!("tidepool-cuda-sim: orders in {}: {problem}", path.display());
                std::process::abort();
            }
        }
    }

    fn follow(&mut self, path: &Path) -> Result<bool, String> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            read => read.map_err(|error| error.to_string())?,
        };
        for line in text.lines() {
            let order = Order::read(line).ok_or_else(|| format!("{line:?} is no order"))?;
            match order {
                Order::Set(name, value) => {
                    let mut known = false;
                    self.change(|settings| known = settings.set(&name, value));
                    if !known {
                        return Err(format!("{name:?} is no setting"));
                    }
                }
                Order::Lose(code) => self.lose(Code(code)),
                Order::Hang(hung) => self.hung = hung,
            }
        }
        fs::remove_file(path).map_err(|error| error.to_string())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn orders_are_followed_once_and_nonsense_is_told() {
        let path = std::env::temp_dir().join(format!("tidepool-sim-orders-{}", std::process::id()));
        let settings = Settings { orders: Some(path.clone()), ..Settings::default() };
        let mut state = State { settings, ..State::default() };
        assert_eq!(state.follow(&path), Ok(false), "none are given");
        fs::write(&path, "fail_allocation 3\nhang 1\n").unwrap();
        assert_eq!(state.follow(&path), Ok(true));
        assert_eq!((state.settings.fail_allocation, state.hung, path.exists()), (Some(3), true, false));
        fs::write(&path, "hang 0\nlose 46\n").unwrap();
        assert!(state.follow_orders());
        assert_eq!((state.hung, state.lost), (false, Some(Code(46))));
        for nonsense in ["lose", "lose x", "hang 2", "no_such 1", "hang  1"] {
            fs::write(&path, nonsense).unwrap();
            assert!(state.follow(&path).is_err(), "{nonsense}");
        }
        fs::remove_file(&path).unwrap();
    }
}

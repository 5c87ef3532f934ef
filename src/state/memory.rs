//! A store that lasts as long as the process; in tests, one whose machine and disk can fail.

use parking_lot::Mutex;

use super::store::{Change, Durability, Rows, Store, Trouble};

/// Rows in memory.
#[derive(Debug, Default)]
pub struct Memory {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    rows: Rows,
    /// As they were when last synced.
    #[cfg(test)]
    synced: Rows,
    /// What every write says from now on, and whether it is done nevertheless.
    #[cfg(test)]
    trouble: Option<(Trouble, bool)>,
}

impl Store for Memory {
    fn read(&self) -> Result<Rows, Trouble> {
        Ok(self.kept.lock().rows.clone())
    }

    #[cfg_attr(not(test), expect(unused_variables, reason = "memory is as durable as it gets"))]
    fn write(&self, changes: Vec<Change>, durability: Durability) -> Result<(), Trouble> {
        let mut kept = self.kept.lock();
        #[cfg(test)]
        if let Some((trouble, false)) = &kept.trouble {
            return Err(trouble.clone());
        }
        for (key, value) in changes {
            match value {
                Some(value) => kept.rows.insert(key, value),
                None => kept.rows.remove(&key),
            };
        }
        #[cfg(test)]
        {
            if durability == Durability::Synced {
                kept.synced = kept.rows.clone();
            }
            if let Some((trouble, true)) = &kept.trouble {
                return Err(trouble.clone());
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Trouble> {
        self.write(Vec::new(), Durability::Synced)
    }
}

#[cfg(test)]
impl Memory {
    /// The machine goes down: what was not synced is gone.
    pub fn lose_power(&self) {
        let mut kept = self.kept.lock();
        kept.rows = kept.synced.clone();
    }

    /// Every write says `trouble`, and is done nevertheless if it says so.
    pub fn fail(&self, trouble: Option<(Trouble, bool)>) {
        self.kept.lock().trouble = trouble;
    }
}

#[cfg(test)]
impl Store for std::sync::Arc<Memory> {
    fn read(&self) -> Result<Rows, Trouble> {
        self.as_ref().read()
    }

    fn write(&self, changes: Vec<Change>, durability: Durability) -> Result<(), Trouble> {
        self.as_ref().write(changes, durability)
    }

    fn sync(&self) -> Result<(), Trouble> {
        self.as_ref().sync()
    }
}

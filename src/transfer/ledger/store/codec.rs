//! How is a transfer written down? Described in docs/formats.md.

use crate::transfer::ledger::record::Record;

/// The format that this kvd writes.
pub const FORMAT: u8 = 1;

/// A transfer that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It has no format byte.
    #[error("empty")]
    Empty,
    /// It is of a format that this kvd does not know.
    #[error("of format {0}")]
    Format(u8),
    /// It is no transfer.
    #[error("malformed: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
}

/// The bytes of `record`.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    // With names, so that a field may be added without a new format.
    rmp_serde::encode::write_named(&mut bytes, record).expect("a record has no map that fails");
    bytes
}

/// The transfer that `bytes` are of.
///
/// # Errors
/// Where they are of none that this kvd can read.
pub fn decode(bytes: &[u8]) -> Result<Record, Unreadable> {
    match bytes {
        [] => Err(Unreadable::Empty),
        [FORMAT, record @ ..] => Ok(rmp_serde::from_slice(record)?),
        [other, ..] => Err(Unreadable::Format(*other)),
    }
}

//! Where on the servers is what?

use xxhash_rust::xxh3::xxh3_128;

use crate::transfer::ledger::record::TransferId;
use crate::transfer::types::Purpose;

/// The hash of shelves and who has them.
pub fn shelves(namespace: &str) -> String {
    format!("{}:shelves", tag(namespace, "ledger"))
}

/// The transfer that has a request's key.
pub fn request(namespace: &str, request_id: &str, purpose: Purpose) -> String {
    let hash = xxh3_128(format!("{purpose:?} {request_id}").as_bytes());
    // Spread over slots, as nothing is asked of several together.
    format!("{}:{hash:032x}", tag(namespace, &format!("key:{}", hash % 64)))
}

/// The keys of one shelf.
#[derive(Clone, Debug)]
pub struct ShelfKeys(String);

impl ShelfKeys {
    pub fn new(namespace: &str, name: &str) -> ShelfKeys {
        ShelfKeys(tag(namespace, &format!("shelf:{name}")))
    }

    pub fn lease(&self) -> String {
        format!("{}:lease", self.0)
    }

    pub fn transfers(&self) -> String {
        format!("{}:transfers", self.0)
    }

    /// A script about both.
    pub fn script(&self, text: &str) -> redis::Cmd {
        redis::cmd("EVAL").arg(text).arg(2).arg(self.lease()).arg(self.transfers()).take()
    }
}

/// The field that says in which term a shelf is, how often it was written, and when last.
pub const META: &[u8] = b"m";

/// A transfer's field.
pub fn field(id: TransferId) -> [u8; 16] {
    let mut field = [0; 16];
    field[..8].copy_from_slice(&id.request.to_be_bytes());
    field[8..].copy_from_slice(&id.number.to_be_bytes());
    field
}

/// The transfer of a field.
pub fn id(field: &[u8]) -> Option<TransferId> {
    let field: &[u8; 16] = field.try_into().ok()?;
    let (request, number) = field.split_at(8);
    let word = |half: &[u8]| u64::from_be_bytes(half.try_into().unwrap_or_default());
    Some(TransferId { request: word(request), number: word(number) })
}

fn tag(namespace: &str, part: &str) -> String {
    format!("{{kvd:{}:{part}}}", kvindex_valkey::escaped(namespace))
}

//! Where on the servers is what?

use xxhash_rust::xxh3::xxh3_128;

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

fn tag(namespace: &str, part: &str) -> String {
    format!("{{kvd:{}:{part}}}", kvindex_valkey::escaped(namespace))
}

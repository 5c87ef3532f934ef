//! The ledger on Valkey, where replicas share one.
//!
//! ```text
//! {kvd:NS:shelf:NAME}  :lease      who has it: a string that expires
//!                      :transfers  a hash
//! {kvd:NS:ledger}      :shelves    their names: a hash
//! {kvd:NS:key:P}       :HASH       which transfer has a request's key: a string that expires
//! ```
//!
//! A *shelf* is begun by one life of a replica, which puts all transfers there that it plans. Who has its lease is
//! home to them. When a lease has run out another replica takes the shelf over, in a new term, and what the old home
//! still sends is refused. A transfer never changes its shelf, so that it has one home at any time, whoever comes and goes.
//!
//! `shelf` is one of them, `keeper` all that a replica has, `library` what it reads of others'.

mod keeper;
mod keys;
mod library;
mod shelf;

pub use keeper::Valkey;
pub use library::{Found, Library};

/// Where the ledger is shared, and by whom.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The servers, with the namespace and how long a replica that is not heard of stays home.
    pub servers: kvindex_valkey::Config,
    /// Where this replica is asked by others.
    pub address: String,
    /// A name that no other process has.
    pub process: String,
    /// Replicas of a server that must have heard of a change before it is answered.
    pub wait_replicas: u32,
}

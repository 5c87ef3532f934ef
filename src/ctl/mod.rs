//! kvctl: how is kvd doing, and is it right?

pub mod capture;
pub mod engine_sim;
pub mod kvcap;

//! The real binaries on free ports, fed with recorded engine streams through real sockets.

mod apiserver;
mod captures;
mod catalog;
mod client;
mod discovery;
mod forms;
mod grpc;
mod guard;
mod hostile;
mod liveness;
mod outcomes;
mod python;
mod recovery;
mod replicas;
mod reviews;
mod rolling;
mod shapes;
mod snapshots;
mod support;
mod tier;
mod transfers;
mod valkey;

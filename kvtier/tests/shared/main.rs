//! One suite for every object store that blocks are shared in: memory, a file system, and a server that
//! speaks like S3 where there is one (`tests/s3/run.sh` brings it).

mod contract;
mod flaky;
mod local;
mod rig;
#[cfg(feature = "s3")]
mod s3;

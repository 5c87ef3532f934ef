//! The decoders against recorded streams, against bytes made to hurt, and against the
//! corpus of the fuzz targets.

mod captures;
mod corpus;
mod hostile;
mod recorded;

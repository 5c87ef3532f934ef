//! What was told: streams, and the batches of each that are kept.

use rocksdb::{DB, Direction, IteratorMode, WriteBatch};

use super::{Catalog, CatalogError, Row, db, family, tier_of};
use crate::policy::Tier;
use crate::store::{KEY_BYTES, StoreKey};

/// A model's stream of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRow {
    pub model: String,
    /// First batch kept.
    pub first: u64,
    /// What was told in batches before this one is written down on disk, too.
    pub settled: u64,
}

/// A batch that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub seq: u64,
    pub payload: Vec<u8>,
    /// Came (1) or left (0), tier, name: what the payload says, for this node's own use.
    pub changes: Vec<(bool, Tier, StoreKey)>,
}

impl Catalog {
    /// All streams, by number.
    pub fn streams(&self) -> Result<Vec<StreamRow>, CatalogError> {
        let decode = |at: usize, (key, value): Row| {
            let (first, rest) = value.split_first_chunk()?;
            let (settled, model) = rest.split_first_chunk()?;
            let model = String::from_utf8(model.to_vec()).ok()?;
            let (first, settled) = (u64::from_be_bytes(*first), u64::from_be_bytes(*settled));
            (key == (at as u32).to_be_bytes()).then_some(StreamRow { model, first, settled })
        };
        let rows = self.rows("streams")?.into_iter().enumerate();
        rows.map(|(at, row)| decode(at, row).ok_or(CatalogError::Damaged { what: "a stream" })).collect()
    }

    /// Notes a stream, and drops what it does not keep any more.
    pub fn set_stream(&self, stream: u32, row: &StreamRow) -> Result<(), CatalogError> {
        let value = [&row.first.to_be_bytes()[..], &row.settled.to_be_bytes(), row.model.as_bytes()].concat();
        self.writing(|open| {
            let mut batch = WriteBatch::default();
            batch.put_cf(family(open, "streams"), stream.to_be_bytes(), &value);
            let gone = (event_key(stream, 0), event_key(stream, row.first));
            batch.delete_range_cf(family(open, "events"), gone.0, gone.1);
            open.write(batch).map_err(db("write"))
        })
    }

    /// Adds a batch to a stream.
    pub fn log(&self, stream: u32, batch: &Logged) -> Result<(), CatalogError> {
        let mut value = Vec::with_capacity(4 + batch.payload.len() + batch.changes.len() * (2 + KEY_BYTES));
        value.extend((batch.payload.len() as u32).to_be_bytes());
        value.extend(&batch.payload);
        for (came, tier, key) in &batch.changes {
            value.extend([u8::from(*came), *tier as u8]);
            value.extend(key.bytes());
        }
        self.put("events", &event_key(stream, batch.seq), &value)
    }

    /// Up to `most` batches of a stream, from `seq` on.
    pub fn logged(&self, stream: u32, seq: u64, most: usize) -> Result<Vec<Logged>, CatalogError> {
        self.with(|open| Catalog::read_log(open, stream, seq, most))
    }

    fn read_log(open: &DB, stream: u32, seq: u64, most: usize) -> Result<Vec<Logged>, CatalogError> {
        let from = event_key(stream, seq);
        let rows = open.iterator_cf(family(open, "events"), IteratorMode::From(&from, Direction::Forward));
        let mut batches = Vec::new();
        for row in rows.take(most) {
            let (key, value) = row.map_err(db("read events"))?;
            let damaged = || CatalogError::Damaged { what: "a batch of events" };
            let (of, seq) = key.split_first_chunk::<4>().ok_or_else(damaged)?;
            if u32::from_be_bytes(*of) != stream {
                break;
            }
            let seq = u64::from_be_bytes(seq.try_into().map_err(|_| damaged())?);
            let (payload, changes) = decode_logged(&value).ok_or_else(damaged)?;
            batches.push(Logged { seq, payload, changes });
        }
        Ok(batches)
    }

    /// The number after a stream's last batch that is kept; `None` where none is.
    pub fn end(&self, stream: u32) -> Result<Option<u64>, CatalogError> {
        self.with(|open| {
            let from = event_key(stream, u64::MAX);
            let mut rows =
                open.iterator_cf(family(open, "events"), IteratorMode::From(&from, Direction::Reverse));
            let Some(row) = rows.next() else { return Ok(None) };
            let (key, _) = row.map_err(db("read events"))?;
            let (of, seq) = (key.first_chunk::<4>(), key.last_chunk::<8>());
            let end = |seq: &[u8; 8]| u64::from_be_bytes(*seq).saturating_add(1);
            Ok(seq.filter(|_| of == Some(&stream.to_be_bytes())).map(end))
        })
    }
}

fn event_key(stream: u32, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&stream.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_be_bytes());
    key
}

type Told = (Vec<u8>, Vec<(bool, Tier, StoreKey)>);

fn decode_logged(value: &[u8]) -> Option<Told> {
    let (bytes, rest) = value.split_first_chunk()?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes(*bytes) as usize)?;
    let change = |row: &[u8]| {
        let (head, name) = row.split_first_chunk::<2>()?;
        Some((head[0] == 1, tier_of(head[1])?, StoreKey::from_bytes(name.try_into().ok()?)?))
    };
    let changes = rest.chunks(2 + KEY_BYTES).map(change).collect::<Option<Vec<_>>>()?;
    Some((payload.to_vec(), changes))
}

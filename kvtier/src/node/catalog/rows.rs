//! Rows that say how a node is set up, and what it holds that it could not find out again.

use rocksdb::{DB, Direction, IteratorMode, WriteBatch};

use super::{Catalog, CatalogError, Row, db, family, tier_of};
use crate::policy::{BlockId, Owner, PinId, Tier};
use crate::store::{Layout, StoreKey};

/// How a pool was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRow {
    pub layout: Layout,
    /// Blocks that RAM is to hold.
    pub ram: u32,
}

/// A pin that is to hold after a restart, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    pub pin: PinId,
    /// When it ends (ms).
    pub until: u64,
    pub blocks: Vec<BlockId>,
}

impl Catalog {
    /// All pools.
    pub fn pools(&self) -> Result<Vec<PoolRow>, CatalogError> {
        let decode = |(key, value): Row| {
            let (slots, rest) = value.split_first_chunk()?;
            let (segment_slots, rest) = rest.split_first_chunk()?;
            let layout = Layout {
                block_bytes: u64::from_be_bytes(key.try_into().ok()?) as usize,
                slots: u32::from_be_bytes(*slots),
                segment_slots: u32::from_be_bytes(*segment_slots),
            };
            Some(PoolRow { layout, ram: u32::from_be_bytes(rest.try_into().ok()?) })
        };
        let rows = self.rows("pools")?;
        rows.into_iter().map(|row| decode(row).ok_or(CatalogError::Damaged { what: "a pool" })).collect()
    }

    /// Notes a pool.
    pub fn add_pool(&self, row: PoolRow) -> Result<(), CatalogError> {
        let PoolRow { layout, ram } = row;
        let value = [layout.slots, layout.segment_slots, ram].map(u32::to_be_bytes).concat();
        self.put("pools", &(layout.block_bytes as u64).to_be_bytes(), &value)
    }

    /// All owners, by number: model and salt.
    pub fn owners(&self) -> Result<Vec<(String, String)>, CatalogError> {
        let decode = |at: usize, (key, value): Row| {
            let text = String::from_utf8(value).ok()?;
            let (model, salt) = text.split_once('\0')?;
            (key == (at as u16).to_be_bytes()).then(|| (model.to_owned(), salt.to_owned()))
        };
        let rows = self.rows("owners")?.into_iter().enumerate();
        rows.map(|(at, row)| decode(at, row).ok_or(CatalogError::Damaged { what: "an owner" })).collect()
    }

    /// Notes an owner. The model has no zero character in it.
    pub fn add_owner(&self, owner: Owner, model: &str, salt: &str) -> Result<(), CatalogError> {
        self.put("owners", &owner.0.to_be_bytes(), format!("{model}\0{salt}").as_bytes())
    }

    /// All quotas: bytes per block of the pool, tier, owner, blocks.
    pub fn quotas(&self) -> Result<Vec<(usize, Tier, Owner, u32)>, CatalogError> {
        let decode = |(key, value): Row| {
            let (pool, rest) = key.split_first_chunk()?;
            let (tier, owner) = rest.split_first()?;
            let owner = Owner(u16::from_be_bytes(owner.try_into().ok()?));
            let blocks = u32::from_be_bytes(value.try_into().ok()?);
            Some((u64::from_be_bytes(*pool) as usize, tier_of(*tier)?, owner, blocks))
        };
        let rows = self.rows("quotas")?;
        rows.into_iter().map(|row| decode(row).ok_or(CatalogError::Damaged { what: "a quota" })).collect()
    }

    /// Notes a quota.
    pub fn set_quota(&self, pool: usize, tier: Tier, owner: Owner, blocks: u32) -> Result<(), CatalogError> {
        let key = [&(pool as u64).to_be_bytes()[..], &[tier as u8], &owner.0.to_be_bytes()].concat();
        self.put("quotas", &key, &blocks.to_be_bytes())
    }

    /// Blocks of a pool that are in shared storage, and whose they are.
    pub fn shared(&self, pool: usize) -> Result<Vec<(StoreKey, Owner)>, CatalogError> {
        self.of_pool("shared", pool, |name, value| {
            let name = name.try_into().ok().and_then(StoreKey::from_bytes)?;
            Some((name, Owner(u16::from_be_bytes(value.try_into().ok()?))))
        })
    }

    /// Notes that a block is in shared storage, or (`None`) is not.
    pub fn set_shared(&self, pool: usize, key: &StoreKey, owner: Option<Owner>) -> Result<(), CatalogError> {
        let row = [&(pool as u64).to_be_bytes()[..], &key.bytes()].concat();
        match owner {
            Some(owner) => self.put("shared", &row, &owner.0.to_be_bytes()),
            None => self.writing(|open| open.delete_cf(family(open, "shared"), row).map_err(db("write"))),
        }
    }

    /// Pins of a pool.
    pub fn pins(&self, pool: usize) -> Result<Vec<PinRow>, CatalogError> {
        self.of_pool("pins", pool, |pin, value| {
            let (until, ids) = value.split_first_chunk()?;
            let ids = ids.chunks(16).map(|id| Some(BlockId(u128::from_be_bytes(id.try_into().ok()?))));
            Some(PinRow {
                pin: PinId(u64::from_be_bytes(pin.try_into().ok()?)),
                until: u64::from_be_bytes(*until),
                blocks: ids.collect::<Option<_>>()?,
            })
        })
    }

    /// Notes a pin.
    pub fn set_pin(&self, pool: usize, row: &PinRow) -> Result<(), CatalogError> {
        let mut value = Vec::with_capacity(8 + 16 * row.blocks.len());
        value.extend(row.until.to_be_bytes());
        row.blocks.iter().for_each(|id| value.extend(id.0.to_be_bytes()));
        self.put("pins", &pin_key(pool, row.pin), &value)
    }

    /// Notes another end of a pin. False where there is no such pin.
    pub fn move_pin(&self, pool: usize, pin: PinId, until: u64) -> Result<bool, CatalogError> {
        let key = pin_key(pool, pin);
        let row = self.with(|open| open.get_cf(family(open, "pins"), key).map_err(db("read a pin")))?;
        let Some(mut value) = row else { return Ok(false) };
        let end = value.first_chunk_mut().ok_or(CatalogError::Damaged { what: "a pin" })?;
        *end = until.to_be_bytes();
        self.put("pins", &key, &value)?;
        Ok(true)
    }

    /// Notes that pins are over.
    pub fn drop_pins(&self, pool: usize, pins: &[PinId]) -> Result<(), CatalogError> {
        if pins.is_empty() {
            return Ok(());
        }
        self.writing(|open| {
            let mut batch = WriteBatch::default();
            pins.iter().for_each(|pin| batch.delete_cf(family(open, "pins"), pin_key(pool, *pin)));
            open.write(batch).map_err(db("write"))
        })
    }

    /// Begins a life of the node. Returns its number, from 1.
    pub fn live(&self) -> Result<u32, CatalogError> {
        let before = self.with(|open| open.get_cf(family(open, "node"), "life").map_err(db("read")))?;
        let before = match before {
            None => 0,
            Some(bytes) => {
                let bytes = bytes.try_into().map_err(|_| CatalogError::Damaged { what: "the life" })?;
                u32::from_be_bytes(bytes)
            }
        };
        let life = before.saturating_add(1);
        self.put("node", b"life", &life.to_be_bytes())?;
        Ok(life)
    }

    /// Rows of a family whose keys begin with a pool.
    fn of_pool<T>(
        &self,
        name: &'static str,
        pool: usize,
        decode: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, CatalogError> {
        let read = |open: &DB| {
            let prefix = (pool as u64).to_be_bytes();
            let from = IteratorMode::From(&prefix, Direction::Forward);
            let mut found = Vec::new();
            for row in open.iterator_cf(family(open, name), from) {
                let (key, value) = row.map_err(db("read"))?;
                let Some(rest) = key.strip_prefix(&prefix[..]) else { break };
                found.push(decode(rest, &value).ok_or(CatalogError::Damaged { what: name })?);
            }
            Ok(found)
        };
        self.with(read)
    }
}

fn pin_key(pool: usize, pin: PinId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&(pool as u64).to_be_bytes());
    key[8..].copy_from_slice(&pin.0.to_be_bytes());
    key
}

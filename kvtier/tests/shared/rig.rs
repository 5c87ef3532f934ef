//! An object store, and nodes that share blocks in it.

use std::sync::Arc;

use futures::TryStreamExt;
use kvtier::policy::Owner;
use kvtier::shared::{Objects, Shared};
use kvtier::store::{Get, Put, Read, StoreKey};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::runtime::Runtime;

/// What nodes call the place that they share.
const PREFIX: &str = "kv";

pub struct Rig {
    pub store: Arc<dyn ObjectStore>,
    pub runtime: Runtime,
    pub block_bytes: usize,
}

impl Rig {
    pub fn new(store: Arc<dyn ObjectStore>, block_bytes: usize) -> Rig {
        Rig { store, runtime: Runtime::new().unwrap(), block_bytes }
    }

    /// A node that knows nothing yet.
    pub fn node(&self) -> Objects {
        Objects::new(self.store.clone(), self.runtime.handle().clone(), PREFIX, self.block_bytes)
    }

    /// A node that has looked around.
    pub fn late_node(&self) -> Objects {
        let node = self.node();
        node.news();
        node
    }

    /// What lies there, by whoever.
    pub fn objects(&self) -> Vec<ObjectMeta> {
        self.runtime.block_on(self.store.list(None).try_collect()).unwrap()
    }

    pub fn read(&self, object: &ObjectMeta) -> Vec<u8> {
        let read = async { self.store.get(&object.location).await?.bytes().await };
        self.runtime.block_on(read).unwrap().to_vec()
    }

    /// Changes an object behind the nodes' backs.
    pub fn overwrite(&self, object: &ObjectMeta, bytes: Vec<u8>) {
        self.runtime.block_on(self.store.put(&object.location, bytes.into())).unwrap();
    }

    pub fn remove(&self, object: &ObjectMeta) {
        self.runtime.block_on(self.store.delete(&object.location)).unwrap();
    }

    /// What block `n` holds.
    pub fn payload(&self, n: u8) -> Vec<u8> {
        let mut x = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let word = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        };
        (0..self.block_bytes / 8).flat_map(word).collect()
    }

    /// Puts blocks. Which are there then.
    pub fn put(&self, node: &Objects, numbers: &[u8]) -> Vec<bool> {
        let payloads: Vec<Vec<u8>> = numbers.iter().map(|n| self.payload(*n)).collect();
        let blocks: Vec<_> = numbers.iter().copied().zip(payloads.iter().map(Vec::as_slice)).collect();
        self.put_payloads(node, &blocks)
    }

    pub fn put_payloads(&self, node: &Objects, blocks: &[(u8, &[u8])]) -> Vec<bool> {
        let blocks = blocks.iter().copied();
        let puts: Vec<Put<'_>> =
            blocks.map(|(n, payload)| Put { key: key(n), after: None, owner: Owner(0), payload }).collect();
        node.put(&puts)
    }

    /// Reads blocks and checks the bytes of those that came.
    pub fn get(&self, node: &Objects, numbers: &[u8]) -> Vec<Read> {
        let mut bytes = vec![0; numbers.len() * self.block_bytes];
        let reads = self.get_into(node, numbers, &mut bytes);
        for ((bytes, read), n) in bytes.chunks(self.block_bytes).zip(&reads).zip(numbers) {
            assert!(*read != Read::Hit || bytes == self.payload(*n), "wrong bytes of {n}");
        }
        reads
    }

    pub fn get_into(&self, node: &Objects, numbers: &[u8], bytes: &mut [u8]) -> Vec<Read> {
        let blocks = bytes.chunks_mut(self.block_bytes).zip(numbers);
        node.get(&mut blocks.map(|(into, n)| Get { key: key(*n), into }).collect::<Vec<_>>())
    }
}

/// Block `n`; those above 100 are of another group of layers.
pub fn key(n: u8) -> StoreKey {
    StoreKey::new(7, u32::from(n > 100), &[n; 32]).unwrap()
}

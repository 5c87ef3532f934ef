//! Memory and a file system.

use std::sync::Arc;

use kvtier::shared::Shared;
use kvtier::store::{Read, StoreKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use crate::contract::keeps_the_contract;
use crate::rig::{Rig, key};

const BYTES: usize = 3000;

fn in_folder(folder: &std::path::Path) -> Rig {
    Rig::new(Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap()), BYTES)
}

#[test]
fn memory_keeps_the_contract() {
    keeps_the_contract(&Rig::new(Arc::new(InMemory::new()), BYTES));
}

#[test]
fn a_file_system_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    keeps_the_contract(&in_folder(folder.path()));
}

#[test]
fn an_object_that_could_not_be_reached_for_a_while_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let rig = in_folder(folder.path());
    let node = rig.node();
    assert_eq!(rig.put(&node, &[1, 2, 3]), [true; 3]);
    let file = folder.path().join(rig.objects()[0].location.as_ref());
    let aside = folder.path().join("aside");
    // In its place stands what cannot be read.
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(rig.get(&node, &[1, 2]), [Read::Lost; 2]);
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    let news = node.news();
    let came: Vec<StoreKey> = news.came.iter().map(|(key, _)| *key).collect();
    assert_eq!((came, news.left), (vec![key(1), key(2)], vec![]));
    assert_eq!(rig.get(&node, &[1, 2, 3]), [Read::Hit; 3]);
    // And once more gone for good, all of it is told.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(node.news().left.len(), 3);
}

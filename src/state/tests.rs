//! The catalog over each store, and what happens to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;

use super::contents::{Contents, Cursor, Snapshot, SnapshotCursor, SnapshotState};
use super::memory::Memory;
use super::rocks::Rocks;
use super::store::{Durability, Store, Trouble};
use super::{Catalog, CatalogError, format};
use crate::ingest::testing::dialled;
use crate::publisher::{Followed, Origin, PublisherSpec, Sighting, Source};

fn spec(name: &str) -> PublisherSpec {
    dialled(name, "tcp://10.0.0.1:5557")
}

fn life(catalog: &Catalog, of: &PublisherSpec) -> Option<u64> {
    catalog.lives().get(&of.key()).copied()
}

fn snapshot(cut_ms: u64, of: &PublisherSpec, life: u64, seq: u64) -> Snapshot {
    let cursor = Some(Cursor { seq, ts: 0.1 + seq as f64 });
    let cursors = vec![SnapshotCursor { publisher: of.key(), life, cursor }];
    Snapshot { state: SnapshotState::Complete, size: 1 << 40, checksum: u64::MAX, cut_ms, cursors }
}

/// What every store must do: `open` opens the same one again.
fn everything_comes_back(open: impl Fn() -> Catalog) {
    let (a, b) = (spec("a"), spec("b"));
    let catalog = open();
    assert_eq!((catalog.incarnation(), specs_of(&catalog)), (1, vec![]));
    catalog.keep_publishers(&[a.clone().into(), b.clone().into()]).unwrap();
    assert_eq!(catalog.begin_life(&b.key()), Some(1));
    assert_eq!(catalog.begin_life(&spec("c").key()), None);
    catalog.flush().unwrap();
    catalog.add_snapshot("1", &snapshot(100, &a, 0, 7)).unwrap();
    catalog.add_snapshot("2", &snapshot(200, &b, 1, u64::MAX)).unwrap();
    catalog.add_snapshot("3", &snapshot(300, &a, 0, 9)).unwrap();
    catalog.mark_bad("3").unwrap();
    catalog.sync().unwrap();
    drop(catalog);

    let catalog = open();
    assert_eq!((catalog.incarnation(), specs_of(&catalog)), (2, vec![a.clone(), b.clone()]));
    assert_eq!((life(&catalog, &a), life(&catalog, &b)), (Some(0), Some(1)));
    assert_eq!(catalog.cursor(&a.key()), Some(Cursor { seq: 7, ts: 7.1 }));
    assert_eq!(catalog.cursor(&b.key()).map(|c| c.seq), Some(u64::MAX));
    let names: Vec<_> = catalog.snapshots().into_iter().map(|(name, s)| (name, s.state)).collect();
    let (good, bad) = (SnapshotState::Complete, SnapshotState::Bad);
    assert_eq!(names, [("3".to_owned(), bad), ("2".to_owned(), good), ("1".to_owned(), good)]);
    catalog.remove_snapshot("2").unwrap();
    catalog.keep_publishers(&[b.clone().into()]).unwrap();
    drop(catalog);

    let catalog = open();
    assert_eq!((specs_of(&catalog), catalog.snapshots().len()), (vec![b.clone()], 2));
    assert_eq!(catalog.cursor(&b.key()), None);
    assert_eq!(life(&catalog, &b), Some(1));
}

#[test]
fn everything_comes_back_from_rocksdb() {
    let dir = tempfile::tempdir().unwrap();
    everything_comes_back(|| Catalog::open(&dir.path().join("data")).unwrap());
}

#[test]
fn everything_comes_back_from_memory_that_lasts() {
    let memory = Arc::new(Memory::default());
    everything_comes_back(|| over(&memory));
}

fn over(memory: &Arc<Memory>) -> Catalog {
    Catalog::over(PathBuf::from("/data/catalog"), Box::new(Arc::clone(memory))).unwrap()
}

#[test]
fn what_was_acknowledged_survives_the_machine() {
    let memory = Arc::new(Memory::default());
    let (a, b) = (spec("a"), spec("b"));
    let catalog = over(&memory);
    catalog.keep_publishers(&[a.clone().into()]).unwrap();
    catalog.begin_life(&a.key());
    catalog.flush().unwrap();
    memory.lose_power();
    let catalog = over(&memory);
    assert_eq!((specs_of(&catalog), life(&catalog, &a)), (vec![a.clone()], Some(0)));
    // A snapshot of a life brings the life along.
    catalog.begin_life(&a.key());
    catalog.add_snapshot("1", &snapshot(1, &a, 1, 3)).unwrap();
    catalog.begin_life(&a.key());
    memory.lose_power();
    let catalog = over(&memory);
    assert_eq!((life(&catalog, &a), catalog.cursor(&a.key()).map(|c| c.seq)), (Some(1), Some(3)));
    catalog.keep_publishers(&[a.into(), b.into()]).unwrap();
    memory.lose_power();
    assert_eq!(specs_of(&over(&memory)).len(), 2);
}

#[test]
fn a_write_that_failed_is_made_good_by_the_next() {
    for done_nevertheless in [false, true] {
        let memory = Arc::new(Memory::default());
        let (a, b, c) = (spec("a"), spec("b"), spec("c"));
        let catalog = over(&memory);
        catalog.keep_publishers(&[a.clone().into()]).unwrap();
        memory.fail(Some((Trouble::Full { why: "No space left on device".into() }, done_nevertheless)));
        let error = catalog.keep_publishers(&[b.clone().into()]).unwrap_err().to_string();
        assert!(error.contains("/data/catalog") && error.contains("disk is full"), "{error}");
        assert_eq!(specs_of(&catalog), slice::from_ref(&a), "what is not on disk is not so");
        catalog.begin_life(&a.key());
        assert!(catalog.flush().is_err() && catalog.sync().is_err());
        assert_eq!(catalog.write_errors(), 3);
        memory.fail(None);
        catalog.add_snapshot("1", &snapshot(1, &c, 0, 1)).unwrap();
        let again = over(&memory);
        assert_eq!((specs_of(&again), life(&again, &a)), (vec![a], Some(1)), "{done_nevertheless}");
    }
}

#[test]
fn a_directory_has_one_kvd() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let error = Catalog::open(dir.path()).err().unwrap().to_string();
    let pid = format!("process {}", std::process::id());
    assert!(error.contains(&dir.path().display().to_string()) && error.contains(&pid), "{error}");
    drop(catalog);
    Catalog::open(dir.path()).unwrap();
}

#[test]
fn a_catalog_that_another_program_has_open_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Catalog::open(dir.path()).unwrap().keep_publishers(&[spec("a").into()]).unwrap();
    let path = dir.path().join("catalog");
    let other = Rocks::open(&path).unwrap();
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::Locked { .. }), "{error}");
    drop(other);
    assert_eq!(specs_of(&Catalog::open(dir.path()).unwrap()).len(), 1);
}

#[test]
fn a_catalog_of_a_later_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    let row = (b"m/format".to_vec(), Some(rmp_serde::to_vec(&(format::FORMAT + 1)).unwrap()));
    Rocks::open(&path).unwrap().write(vec![row], Durability::Synced).unwrap();
    for _ in 0..2 {
        let error = Catalog::open(dir.path()).err().unwrap();
        assert!(matches!(error, CatalogError::Newer { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Catalog::open(&file.join("data")).err().unwrap().to_string();
    assert!(error.contains("file/data") && error.contains("--data-dir"), "{error}");
}

#[test]
fn rows_that_no_version_writes_are_damage() {
    let (a, b) = (spec("a"), spec("b"));
    let mut contents = Contents::default();
    contents.register(&[a.clone().into(), b.clone().into()]);
    contents.snapshots.insert("1".into(), snapshot(1, &a, 0, 1));
    let rows = format::rows(&contents);
    assert_eq!(format::contents(&rows).unwrap(), contents);
    let keys: Vec<_> = rows.keys().cloned().collect();
    let mut cases: Vec<(Vec<u8>, Option<Vec<u8>>)> = vec![
        (b"m/format".to_vec(), None),
        (b"x".to_vec(), Some(vec![0])),
        (b"s/../x".to_vec(), Some(rows[b"s/1".as_slice()].clone())),
        (b"s/".to_vec(), Some(rows[b"s/1".as_slice()].clone())),
        (keys[3].clone(), Some(rows[&keys[4]].clone())),
    ];
    for key in &keys {
        let mut long = rows[key].clone();
        long.push(0);
        cases.push((key.clone(), Some(long)));
        cases.push((key.clone(), Some(rows[key][..rows[key].len() - 1].to_vec())));
        cases.push((key.clone(), Some(vec![0xc1])));
    }
    for (key, value) in cases {
        let mut rows = rows.clone();
        match value.clone() {
            Some(value) => rows.insert(key.clone(), value),
            None => rows.remove(&key),
        };
        let got = format::contents(&rows);
        assert!(matches!(got, Err(Trouble::Damaged { .. })), "{:?} {value:?} {got:?}", key.escape_ascii());
    }
}

/// Whatever happens to a file of the catalog, kvd starts: with what was acknowledged at some time, or
/// with what can be read of it, and then says so.
#[test]
fn damage_is_noticed_and_set_aside() {
    let whole = tempfile::tempdir().unwrap();
    let mut history = vec![vec![]];
    // Two starts, so that there are tables as well as a log.
    for names in [["a", "b"], ["c", "d"]] {
        let catalog = Catalog::open(whole.path()).unwrap();
        for name in names {
            let mut specs = specs_of(&catalog);
            specs.push(spec(name));
            catalog.keep_publishers(&by_clients(&specs)).unwrap();
            history.push(specs);
        }
    }
    let files: Vec<_> =
        fs::read_dir(whole.path().join("catalog")).unwrap().map(|f| f.unwrap().file_name()).collect();
    let (mut damaged, mut salvaged) = (0, 0);
    for file in files.iter().filter(|f| *f != "LOCK") {
        let bytes = fs::read(whole.path().join("catalog").join(file)).unwrap();
        let middle = bytes.len() / 2;
        let flips = (0..bytes.len()).step_by((bytes.len() / 6).max(1)).map(|at| {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            Some(flipped)
        });
        for change in flips.chain([None, Some(vec![]), Some(bytes[..middle].to_vec())]) {
            let dir = tempfile::tempdir().unwrap();
            copy(&whole.path().join("catalog"), &dir.path().join("catalog"));
            let path = dir.path().join("catalog").join(file);
            match &change {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let what = format!("{file:?} with {:?} of {} bytes", change.as_ref().map(Vec::len), bytes.len());
            let catalog = Catalog::open(dir.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
            let got = specs_of(&catalog);
            match catalog.set_aside() {
                Some(aside) => {
                    damaged += 1;
                    salvaged += got.len();
                    assert!(aside.is_dir(), "{what}");
                    assert!(got.iter().all(|s| history[4].contains(s)), "{what}: {got:?}");
                }
                None => assert!(history.contains(&got), "{what}: {got:?}"),
            }
            catalog.keep_publishers(&[spec("e").into()]).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    assert!(damaged > 10, "only {damaged} were noticed");
    // Of four publishers each.
    assert!(salvaged >= 2 * damaged, "{salvaged} publishers of {damaged} damaged catalogs");
}

#[test]
fn what_is_left_of_a_damaged_catalog_goes_on_under_new_lives() {
    let (a, b) = (spec("a"), spec("b"));
    let mut contents = Contents { incarnation: 7, ..Contents::default() };
    contents.register(&[a.clone().into(), b.clone().into()]);
    contents.snapshots.insert("1".into(), snapshot(1, &a, 4, 9));
    let mut rows = format::rows(&contents);
    rows.remove(b"m/format".as_slice());
    rows.insert(b"s/2".to_vec(), vec![0xc1]);
    let left = format::salvage(&rows);
    assert_eq!((left.incarnation, left.snapshots.len()), (7, 1));
    assert!(left.publishers.values().all(|p| p.life == 5), "{left:?}");
    assert_eq!(left.cursor(&a.key()), None);
}

#[test]
fn the_last_three_damaged_catalogs_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=5 {
        drop(Catalog::open(dir.path()).unwrap());
        fs::write(dir.path().join("catalog/CURRENT"), "damage").unwrap();
        fs::write(dir.path().join("catalog/note"), format!("damage {n}")).unwrap();
    }
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.set_aside(), Some(dir.path().join("catalog.damaged-1").as_path()));
    let kept = |n: u32| fs::read_to_string(dir.path().join(format!("catalog.damaged-{n}/note")));
    let all: Vec<_> = (1..=4).map(|n| kept(n).unwrap_or_default()).collect();
    assert_eq!(all, ["damage 5", "damage 4", "damage 3", ""]);
}

/// The file that version 0.1 wrote before there was a catalog.
#[test]
fn registrations_of_an_earlier_version_are_taken_over_once() {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixtures().join("publishers-1"), dir.path());
    let catalog = Catalog::open(dir.path()).unwrap();
    let names: Vec<_> = specs_of(&catalog).into_iter().map(|s| s.instance_id).collect();
    assert_eq!(names, ["10.0.0.1:8000", "10.0.0.2:30000"]);
    assert_eq!(specs_of(&catalog)[1].bind.as_deref(), Some("tcp://*:5560"));
    catalog.keep_publishers(&[]).unwrap();
    drop(catalog);
    assert_eq!(specs_of(&Catalog::open(dir.path()).unwrap()), []);
    assert!(dir.path().join("publishers.json.imported").is_file());
}

#[test]
fn a_damaged_file_of_an_earlier_version_is_named_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("publishers.json");
    for (text, says) in [("{\"version\": 1", "damaged"), ("{\"version\": 7}", "format 7"), ("", "damaged")] {
        fs::write(&path, text).unwrap();
        let error = Catalog::open(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains(says) && error.contains("publishers.json") && error.contains("move it away"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// A catalog as each format wrote it. The first one did not tell who registrations are by.
#[test]
fn every_format_can_be_read() {
    for (format, origin) in [(1, Origin::Client), (2, seen())] {
        let dir = tempfile::tempdir().unwrap();
        copy(&fixtures().join(format!("format-{format}")), &dir.path().join("catalog"));
        let catalog = Catalog::open(dir.path()).unwrap();
        is_the_fixture(&catalog);
        let origins: Vec<_> = catalog.publishers().into_iter().map(|f| f.origin).collect();
        assert_eq!(origins, [Origin::Client, origin], "format {format}");
    }
}

fn is_the_fixture(catalog: &Catalog) {
    assert_eq!(catalog.set_aside(), None);
    assert_eq!((catalog.incarnation(), specs_of(catalog)), (3, fixture_publishers()));
    let first = fixture_publishers()[0].key();
    assert_eq!(
        (catalog.lives().get(&first).copied(), catalog.cursor(&first)),
        (Some(2), Some(Cursor { seq: 41, ts: 41.1 }))
    );
    let names: Vec<_> = catalog.snapshots().into_iter().map(|(name, s)| (name, s.state)).collect();
    assert_eq!(
        names,
        [("b.kvsnap".to_owned(), SnapshotState::Bad), ("a.kvsnap".to_owned(), SnapshotState::Complete)]
    );
}

/// `KVD_WRITE_FIXTURE=1 cargo test -p kvd write_the_fixture` writes what [`every_format_can_be_read`] reads. A
/// released format's fixture stays as it is.
#[test]
fn write_the_fixture() {
    if std::env::var_os("KVD_WRITE_FIXTURE").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let specs = fixture_publishers();
    let mut all = by_clients(&specs);
    all[1].origin = seen();
    Catalog::open(dir.path()).unwrap().keep_publishers(&all).unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    for _ in 0..2 {
        catalog.begin_life(&specs[0].key());
    }
    catalog.add_snapshot("a.kvsnap", &snapshot(1_700_000_000_000, &specs[0], 2, 41)).unwrap();
    catalog.add_snapshot("b.kvsnap", &snapshot(1_700_000_100_000, &specs[1], 0, 3)).unwrap();
    catalog.mark_bad("b.kvsnap").unwrap();
    drop(catalog);
    let to = fixtures().join(format!("format-{}", format::FORMAT));
    copy(&dir.path().join("catalog"), &to);
    for file in fs::read_dir(&to).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if ["LOG", "LOCK"].iter().any(|n| name.starts_with(n)) {
            fs::remove_file(path).unwrap();
        }
    }
}

fn specs_of(catalog: &Catalog) -> Vec<PublisherSpec> {
    catalog.publishers().into_iter().map(|f| f.spec).collect()
}

fn by_clients(specs: &[PublisherSpec]) -> Vec<Followed> {
    specs.iter().cloned().map(Followed::from).collect()
}

fn seen() -> Origin {
    let (source, object) = (Source::Kubernetes, "engines/vllm-0".to_owned());
    Origin::Discovered(Sighting { source, object, identity: "uid/containerd://1".to_owned() })
}

fn fixture_publishers() -> Vec<PublisherSpec> {
    let mut second = spec("10.0.0.2:8000");
    second.lora_name = Some(String::new());
    second.hash_seed = Some("0".into());
    vec![spec("10.0.0.1:8000"), second]
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/catalog")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

//! A store of which an object cannot be read for a while, and one that takes its time to be listed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kvtier::shared::{News, Shared};
use kvtier::store::Read;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::rig::Rig;

#[derive(Debug, Default)]
struct Flaky {
    inner: InMemory,
    unreadable: Arc<Mutex<Option<Path>>>,
    /// What happens after the next list was made and before it is given.
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

struct Meanwhile(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("something")
    }
}

impl std::fmt::Display for Flaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flaky {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.unreadable.lock().unwrap().as_ref() == Some(location) {
            return Err(Error::Generic { store: "flaky", source: "not now".into() });
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (list, meanwhile) = (self.inner.list(prefix), self.meanwhile.lock().unwrap().take());
        let made = async move {
            let all: Vec<_> = list.collect().await;
            // Not on this thread, which may not wait for the runtime again.
            if let Some(Meanwhile(happens)) = meanwhile {
                std::thread::spawn(happens).join().unwrap();
            }
            stream::iter(all)
        };
        stream::once(made).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

// A look that failed in the middle kept what it had noted, and never told of it.
#[test]
fn an_object_that_cannot_be_read_is_in_nobody_s_way_and_told_when_it_can() {
    let store = Flaky::default();
    let unreadable = store.unreadable.clone();
    let rig = Rig::new(Arc::new(store), 3000);
    for chain in [&[1, 2][..], &[3], &[101]] {
        rig.put(&rig.node(), chain);
    }
    let objects = rig.objects();
    for object in &objects {
        let node = rig.node();
        *unreadable.lock().unwrap() = Some(object.location.clone());
        let before = node.news().came.len();
        assert!((2..4).contains(&before), "{before} of 4 blocks");
        assert_eq!(node.failed(), 1);
        *unreadable.lock().unwrap() = None;
        assert_eq!(before + node.news().came.len(), 4);
        assert_eq!(rig.get(&node, &[1, 2, 3, 101]), [Read::Hit; 4]);
    }
}

// With a list that takes seconds, what was put meanwhile was told to be gone, and to have come at the next look.
#[test]
fn what_is_put_while_a_node_looks_around_stays() {
    let store = Flaky::default();
    let meanwhile = store.meanwhile.clone();
    let rig = Arc::new(Rig::new(Arc::new(store), 3000));
    let node = Arc::new(rig.node());
    assert_eq!(rig.put(&node, &[1]), [true]);
    let (other_rig, other_node) = (rig.clone(), node.clone());
    let put = move || assert_eq!(other_rig.put(&other_node, &[2]), [true]);
    *meanwhile.lock().unwrap() = Some(Meanwhile(Box::new(put)));
    assert_eq!(node.news(), News::default());
    assert_eq!(rig.get(&node, &[1, 2]), [Read::Hit; 2]);
    // Whoever removes it afterwards is noticed.
    rig.objects().iter().for_each(|object| rig.remove(object));
    assert_eq!(node.news().left.len(), 2);
}

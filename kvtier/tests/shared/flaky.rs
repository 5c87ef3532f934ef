//! A store of which an object cannot be read for a while.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use kvtier::shared::Shared;
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
        self.inner.list(prefix)
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

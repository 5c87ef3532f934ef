//! Shared storage in S3, as far as a server that speaks like it can tell: `tests/s3/run.sh` brings one.
//!
//! Between the node and the server stands a relay that can break off after so many bytes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use kvtier::policy::Owner;
use kvtier::shared::{Objects, Shared};
use kvtier::store::{Get, Put, Read, StoreKey};
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};

const BYTES: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a bucket, killed when dropped. `None`, and said so, where none is named.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Option<Server> {
        let Ok(program) = std::env::var("KVD_S3_SERVER") else {
            eprintln!("skipped: KVD_S3_SERVER names no S3-compatible server; tests/s3/run.sh brings one");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Server::at(&program, port))
    }

    fn at(program: &str, port: u16) -> Server {
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Server { child, port };
        let began = Instant::now();
        while !server.make_bucket() {
            assert!(began.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn make_bucket(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request = "PUT /kv HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes connections on to `to`, until `limit` bytes went to the server over one of them.
struct Relay {
    port: u16,
    limit: Arc<AtomicU64>,
}

impl Relay {
    fn to(to: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let limit = Arc::new(AtomicU64::new(u64::MAX));
        let of_connections = limit.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let limit = of_connections.clone();
                std::thread::spawn(move || relay(from, to, &limit));
            }
        });
        Relay { port, limit }
    }
}

fn relay(mut from: TcpStream, to: u16, limit: &AtomicU64) {
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", to)) else { return };
    let (mut back, mut home) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut home);
        let _ = home.shutdown(Shutdown::Both);
    });
    let (mut passed, mut buffer) = (0, [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let left = limit.load(Ordering::Relaxed).saturating_sub(passed).min(n as u64) as usize;
        if to.write_all(&buffer[..left]).is_err() || left < n {
            break;
        }
        passed += n as u64;
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

struct Bench {
    server: Server,
    relay: Relay,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Option<Bench> {
        let server = Server::start()?;
        let relay = Relay::to(server.port);
        Some(Bench { server, relay, runtime: tokio::runtime::Runtime::new().unwrap() })
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        let backoff = BackoffConfig { init_backoff: Duration::from_millis(10), ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, max_retries: 1, retry_timeout: Duration::from_secs(5) };
        let s3 = AmazonS3Builder::new()
            .with_bucket_name("kv")
            .with_region("us-east-1")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .with_endpoint(format!("http://127.0.0.1:{}", self.relay.port))
            .with_allow_http(true)
            .with_retry(retry);
        Arc::new(s3.build().unwrap())
    }

    /// A node that knows nothing yet.
    fn node(&self) -> Objects {
        Objects::new(self.store(), self.runtime.handle().clone(), "blocks", BYTES)
    }

    fn objects(&self) -> Vec<ObjectMeta> {
        self.runtime.block_on(self.store().list(None).try_collect()).unwrap()
    }
}

fn key(n: u8) -> StoreKey {
    StoreKey::new(7, 0, &[n; 32]).unwrap()
}

/// What block `n` holds.
fn payload(n: u8) -> Vec<u8> {
    let mut x = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..BYTES / 8).flat_map(word).collect()
}

fn put(node: &Objects, numbers: &[u8]) -> Vec<bool> {
    let payloads: Vec<Vec<u8>> = numbers.iter().map(|n| payload(*n)).collect();
    let puts: Vec<Put<'_>> = numbers
        .iter()
        .zip(&payloads)
        .map(|(n, payload)| Put { key: key(*n), after: None, owner: Owner(0), payload })
        .collect();
    node.put(&puts)
}

/// Reads blocks and checks the bytes of those that came.
fn get(node: &Objects, numbers: &[u8]) -> Vec<Read> {
    let mut bytes = vec![0; numbers.len() * BYTES];
    let mut gets: Vec<Get<'_>> =
        bytes.chunks_mut(BYTES).zip(numbers).map(|(into, n)| Get { key: key(*n), into }).collect();
    let reads = node.get(&mut gets);
    for ((get, read), n) in gets.iter().zip(&reads).zip(numbers) {
        assert!(*read != Read::Hit || *get.into == payload(*n), "wrong bytes of {n}");
    }
    reads
}

#[test]
fn nodes_share_what_either_put_once_and_hear_what_is_removed() {
    let Some(bench) = Bench::new() else { return };
    let (a, b) = (bench.node(), bench.node());
    assert_eq!(put(&a, &[1, 2, 3]), [true; 3]);
    assert_eq!(get(&a, &[1, 2, 3, 4]), [Read::Hit, Read::Hit, Read::Hit, Read::Miss]);
    // A node that has not looked puts the same chain: the server refuses the second.
    assert_eq!(put(&b, &[1, 2, 3]), [true; 3]);
    let objects = bench.objects();
    assert_eq!((objects.len(), b.failed()), (1, 0));
    let c = bench.node();
    assert_eq!(c.news().came.len(), 3);
    assert_eq!(get(&c, &[3, 1]), [Read::Hit; 2]);
    // It is kept as it was first put: nobody overwrote it.
    assert_eq!(bench.objects()[0].last_modified, objects[0].last_modified);
    bench.runtime.block_on(bench.store().delete(&objects[0].location)).unwrap();
    assert_eq!(c.news().left.len(), 3);
    assert_eq!(get(&c, &[1]), [Read::Miss]);
}

#[test]
fn a_put_that_breaks_off_leaves_nothing_that_can_be_read() {
    let Some(bench) = Bench::new() else { return };
    // In the head, in a payload, in the trailer.
    let whole = 4 * BYTES as u64;
    for limit in [10, 700, whole / 3, whole - 5, whole + 300] {
        let node = bench.node();
        bench.relay.limit.store(limit, Ordering::Relaxed);
        assert_eq!(put(&node, &[1, 2, 3, 4]), [false; 4], "broken off after {limit} bytes");
        assert!(node.failed() > 0);
        bench.relay.limit.store(u64::MAX, Ordering::Relaxed);
        // What the server made of it is no object with a block, for whoever looks.
        let late = bench.node();
        assert_eq!(late.news().came, [], "broken off after {limit} bytes");
        assert_eq!(get(&late, &[1, 2, 3, 4]), [Read::Miss; 4]);
    }
    // The same chain is put all the same when that works.
    let node = bench.node();
    assert_eq!(put(&node, &[1, 2, 3, 4]), [true; 4]);
    assert_eq!(get(&bench_late(&bench), &[1, 2, 3, 4]), [Read::Hit; 4]);
}

fn bench_late(bench: &Bench) -> Objects {
    let node = bench.node();
    node.news();
    node
}

#[test]
fn a_server_that_is_killed_in_mid_put_costs_the_put_and_what_it_forgot() {
    let Some(mut bench) = Bench::new() else { return };
    let node = bench.node();
    assert_eq!(put(&node, &[1, 2]), [true; 2]);
    // The put hangs half way, and then there is no server any more.
    let program = std::env::var("KVD_S3_SERVER").unwrap();
    let port = bench.server.port;
    let halves: Vec<bool> = std::thread::scope(|scope| {
        let putting = scope.spawn(|| put(&node, &[11, 12, 13, 14]));
        std::thread::sleep(Duration::from_millis(3));
        bench.server.kill();
        putting.join().unwrap()
    });
    assert!(halves == [false; 4] || halves == [true; 4], "{halves:?}");
    assert_eq!(get(&node, &[1]), [Read::Lost]);
    assert!(node.failed() > 0);
    // It comes back without what it had in memory. What is gone is told, and can be put again.
    bench.server = Server::at(&program, port);
    let mut left = node.news().left;
    left.sort();
    assert!(left.contains(&key(2)), "{left:?}");
    assert_eq!(get(&node, &[1, 2, 11, 12, 13, 14]), [Read::Miss; 6]);
    assert_eq!(put(&node, &[1, 2]), [true; 2]);
    assert_eq!(get(&node, &[1, 2]), [Read::Hit; 2]);
}

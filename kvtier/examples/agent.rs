//! An agent by itself: a node's RAM and disk, and the socket that engines come to.
//!
//! ```sh
//! cargo run --release -p kvtier --example agent -- SOCKET FOLDER [ram=64MiB] [disk=256MiB] [workers=8]
//! ```
//!
//! It says `ready` on its standard output and ends when its standard input does.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvtier::agent::{Agent, Config};
use kvtier::node::{Node, NodeConfig, Publish};
use kvtier::{policy, store};

/// Events go nowhere here.
#[derive(Debug)]
struct Deaf;

impl Publish for Deaf {
    fn publish(&self, _stream: u32, _seq: u64, _payload: &[u8]) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(folder)) = (args.next(), args.next()) else {
        return Err("SOCKET FOLDER [ram=64MiB] [disk=256MiB] [workers=8] [lease_ms=10000]".into());
    };
    let (mut ram_bytes, mut disk_bytes) = (64 << 20, 256 << 20);
    let mut config = Config::at(socket);
    for arg in args {
        let (name, value) = arg.split_once('=').ok_or("name=value wanted")?;
        match name {
            "ram" => ram_bytes = bytes(value)?,
            "disk" => disk_bytes = bytes(value)?,
            "workers" => config.workers = value.parse()?,
            "lease_ms" => config.bounds.lease_ms = value.parse()?,
            _ => return Err(format!("nothing is called {name}").into()),
        }
    }
    let millis = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let node = NodeConfig {
        name: "example".to_owned(),
        folder: PathBuf::from(folder),
        ram_bytes,
        disk_bytes,
        pools: 8,
        backend: store::Backend::Auto,
        policy: policy::Config::default(),
        patience: Duration::from_millis(20),
        clock: Arc::new(millis),
        shared: None,
    };
    let node = Arc::new(Node::open(node, Arc::new(Deaf))?);
    let movers: Vec<_> = (0..2).map(|_| spawn(&node, |node| node.work())).collect();
    let commits = spawn(&node, |node| {
        while !node.is_closed() {
            if let Err(error) = node.commit() {
                eprintln!("commit: {error}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let agent = Agent::start(node.clone(), config)?;
    node.recover()?;
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(agent);
    node.close();
    commits.join().map_err(|_| "the thread that commits has panicked")?;
    for mover in movers {
        mover.join().map_err(|_| "a mover has panicked")?;
    }
    node.commit()?;
    Ok(())
}

fn spawn(node: &Arc<Node>, run: impl FnOnce(&Node) + Send + 'static) -> std::thread::JoinHandle<()> {
    let node = node.clone();
    std::thread::spawn(move || run(&node))
}

fn bytes(text: &str) -> Result<u64, Box<dyn Error>> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("{unit} is no unit").into()),
    };
    Ok(number.parse::<u64>()? * unit)
}

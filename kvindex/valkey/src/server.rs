//! A connection to a cluster or one server.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::io::tcp::TcpSettings;
use redis::{Client, Cmd, IntoConnectionInfo, Pipeline, RedisError, ServerErrorKind, Value, cmd};

/// Where the index is kept and how it is reached.
#[derive(Clone)]
pub struct Config {
    /// Some of the cluster's nodes (the others are found), or one server: `redis://HOST:PORT`, `rediss://`
    /// with TLS (feature `tls`); `valkey://` and `valkeys://` are the same.
    pub urls: Vec<String>,
    /// Whether it is one server and no cluster.
    pub single: bool,
    /// User for whom the password is.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Certificate authority of the servers in PEM, where it is not one of the system's.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key in PEM, where the servers ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// What all keys begin with.
    pub namespace: String,
    /// How long a publisher's data stays when nobody writes it any more.
    pub ttl: Duration,
    /// How long a writer that is not heard of keeps others from its publishers; the longest that an answer
    /// can be out of date without saying so.
    pub lease: Duration,
    /// How long a server may take to answer.
    pub timeout: Duration,
    /// Blocks that one publisher may hold; more are refused and the publisher is marked partial.
    pub max_blocks: u64,
    /// (Block, publisher) pairs that routings may announce.
    pub max_speculative: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            urls: Vec::new(),
            single: false,
            username: None,
            password: None,
            ca: None,
            identity: None,
            namespace: "default".to_owned(),
            ttl: Duration::from_secs(600),
            lease: Duration::from_secs(6),
            timeout: Duration::from_secs(1),
            max_blocks: 1 << 20,
            max_speculative: 1 << 20,
        }
    }
}

impl std::fmt::Debug for Config {
    /// Without what must not get into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("urls", &self.urls.iter().map(|u| without_password(u)).collect::<Vec<_>>())
            .field("single", &self.single)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .field("lease", &self.lease)
            .field("timeout", &self.timeout)
            .field("max_blocks", &self.max_blocks)
            .field("max_speculative", &self.max_speculative)
            .finish_non_exhaustive()
    }
}

fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

/// The servers, as one.
#[derive(Clone)]
pub enum Server {
    /// A cluster.
    #[doc(hidden)]
    Cluster(Arc<Cluster>),
    /// One server.
    #[doc(hidden)]
    One(ConnectionManager),
}

/// A cluster, by a connection that can be made anew.
pub struct Cluster {
    client: ClusterClient,
    /// And how often it was made.
    connection: RwLock<(u64, ClusterConnection)>,
    renewing: tokio::sync::Mutex<()>,
}

impl Cluster {
    async fn run(&self, pipe: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let (made, mut connection) = self.connection.read().clone();
        match pipe.query_async(&mut connection).await {
            // The crate follows a key that moved, but not within a transaction; none of it was done.
            Err(e) if says_moved(&e) => {
                self.renew(made).await?;
                let (_, mut connection) = self.connection.read().clone();
                pipe.query_async(&mut connection).await
            }
            other => other,
        }
    }

    /// Looks anew who has which slots, unless somebody did since connection `made`.
    async fn renew(&self, made: u64) -> Result<(), RedisError> {
        let _one = self.renewing.lock().await;
        if self.connection.read().0 == made {
            let new = self.client.get_async_connection().await?;
            *self.connection.write() = (made + 1, new);
        }
        Ok(())
    }
}

/// Without this a transaction waits for the other side's delayed acknowledgement, some 40 ms.
fn at_once() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn says_moved(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|all| all.iter().any(|(_, e)| e.kind() == Some(ServerErrorKind::Moved)))
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Server::Cluster(_) => "a cluster",
            Server::One(_) => "one server",
        })
    }
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// Where none can be reached, or they refuse.
    pub async fn connect(config: &Config) -> Result<Server, RedisError> {
        // The crate takes the process's; where there is one already, that stays.
        #[cfg(feature = "tls")]
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut nodes = Vec::new();
        for url in &config.urls {
            // What the crate calls by the older name.
            let url = match url.strip_prefix("valkey") {
                Some(rest) => format!("redis{rest}"),
                None => url.clone(),
            };
            nodes.push(url.into_connection_info()?);
        }
        if config.single {
            let Some(mut info) = nodes.into_iter().next() else {
                return Err((redis::ErrorKind::InvalidClientConfig, "no address").into());
            };
            let mut settings = info.redis_settings().clone();
            if let Some(user) = &config.username {
                settings = settings.set_username(user);
            }
            if let Some(password) = &config.password {
                settings = settings.set_password(password);
            }
            info = info.set_redis_settings(settings).set_tcp_settings(at_once());
            let client = open(info, config)?;
            let options = ConnectionManagerConfig::new()
                .set_response_timeout(Some(config.timeout))
                .set_connection_timeout(Some(config.timeout))
                .set_number_of_retries(1);
            return Ok(Server::One(ConnectionManager::new_with_config(client, options).await?));
        }
        let mut builder = ClusterClientBuilder::new(nodes)
            .tcp_settings(at_once())
            .response_timeout(config.timeout)
            .connection_timeout(config.timeout)
            .overall_response_timeout(Some(config.timeout * 2))
            .retries(3)
            .min_retry_wait(20)
            .max_retry_wait(200);
        if let Some(user) = &config.username {
            builder = builder.username(user);
        }
        if let Some(password) = &config.password {
            builder = builder.password(password);
        }
        #[cfg(feature = "tls")]
        if config.ca.is_some() || config.identity.is_some() {
            builder = builder.certs(certificates(config));
        }
        let client = builder.build()?;
        let connection = RwLock::new((0, client.get_async_connection().await?));
        Ok(Server::Cluster(Arc::new(Cluster { client, connection, renewing: Default::default() })))
    }

    /// Runs commands on keys of one slot as one transaction.
    ///
    /// # Errors
    /// Where the server does not answer, or refuses.
    pub async fn run(&self, pipe: &mut Pipeline) -> Result<Vec<Value>, RedisError> {
        pipe.atomic();
        match self {
            Server::Cluster(c) => c.run(pipe).await,
            Server::One(c) => pipe.query_async(&mut c.clone()).await,
        }
    }

    /// Runs one command.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn ask(&self, command: Cmd) -> Result<Answers, RedisError> {
        let mut pipe = Pipeline::new();
        pipe.add_command(command);
        Ok(Answers::new(self.run(&mut pipe).await?))
    }

    /// Waits until so many replicas of the server that has `key` have heard what was written over this connection.
    ///
    /// # Errors
    /// Where they have not `within` that time.
    pub async fn heard_by(&self, key: &str, replicas: u32, within: Duration) -> Result<(), RedisError> {
        // Before the client gives up, so that it hears how many did.
        let within = within.as_millis().saturating_mul(3) / 4;
        let wait = cmd("WAIT").arg(replicas).arg(within.clamp(1, u32::MAX.into()) as u32).take();
        let heard = match self {
            Server::One(c) => wait.query_async(&mut c.clone()).await?,
            Server::Cluster(c) => {
                let (_, mut connection) = c.connection.read().clone();
                let at = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                connection.route_command(wait, RoutingInfo::SingleNode(at)).await?
            }
        };
        match Answers::new(vec![heard]).number()? {
            Some(heard) if heard >= u64::from(replicas) => Ok(()),
            _ => Err((redis::ErrorKind::Io, "too few replicas of a server have heard of a write").into()),
        }
    }
}

#[cfg(feature = "tls")]
fn open(info: redis::ConnectionInfo, config: &Config) -> Result<Client, RedisError> {
    if config.ca.is_some() || config.identity.is_some() {
        return Client::build_with_tls(info, certificates(config));
    }
    Client::open(info)
}

#[cfg(not(feature = "tls"))]
fn open(info: redis::ConnectionInfo, _: &Config) -> Result<Client, RedisError> {
    Client::open(info)
}

#[cfg(feature = "tls")]
fn certificates(config: &Config) -> redis::TlsCertificates {
    let client_tls = config
        .identity
        .clone()
        .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
    redis::TlsCertificates { client_tls, root_cert: config.ca.clone() }
}

/// Reads answers one after the other.
pub struct Answers(std::vec::IntoIter<Value>);

/// A server that answers something else than was asked.
pub fn odd_answer() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "a server answered what kvd did not ask").into()
}

impl Answers {
    /// Those of a transaction.
    pub fn new(values: Vec<Value>) -> Answers {
        Answers(values.into_iter())
    }

    /// Whatever it is.
    ///
    /// # Errors
    /// Where there are no more, as all of these; and where it is something else.
    pub fn value(&mut self) -> Result<Value, RedisError> {
        self.0.next().ok_or_else(odd_answer)
    }

    /// A string, or none.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn bytes(&mut self) -> Result<Option<Vec<u8>>, RedisError> {
        as_bytes(self.value()?)
    }

    /// Text, or none.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn text(&mut self) -> Result<Option<String>, RedisError> {
        match self.value()? {
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(Some(text)),
            other => Ok(as_bytes(other)?.and_then(|b| String::from_utf8(b).ok())),
        }
    }

    /// A number, or none; also where it is negative.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn number(&mut self) -> Result<Option<u64>, RedisError> {
        match self.value()? {
            Value::Int(n) => Ok(u64::try_from(n).ok()),
            other => Ok(as_bytes(other)?.and_then(|b| String::from_utf8(b).ok()?.parse().ok())),
        }
    }

    /// Strings, some of them none.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn list(&mut self) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
        match self.value()? {
            Value::Array(all) => all.into_iter().map(as_bytes).collect(),
            _ => Err(odd_answer()),
        }
    }

    /// The process that answered, from `INFO server`.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn run_id(&mut self) -> Result<String, RedisError> {
        let info = self.text()?.ok_or_else(odd_answer)?;
        let line = info.lines().find_map(|l| l.strip_prefix("run_id:"));
        line.map(|id| id.trim().to_owned()).ok_or_else(odd_answer)
    }
}

fn as_bytes(value: Value) -> Result<Option<Vec<u8>>, RedisError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        _ => Err(odd_answer()),
    }
}

//! How is the Kubernetes cluster reached?
//!
//! As a pod of it does, or by a kubeconfig. Nothing is sent before somebody asks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long connecting may take, and how long an answer may say nothing.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(90);

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Cluster {
    /// Asks it.
    pub client: Client,
    /// Where kvd is.
    pub namespace: String,
}

/// A cluster that cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// kvd is not a pod.
    #[error(
        "not in a cluster ({0}), which discovery.pods and security.token_review need; set discovery.kubeconfig or \
         security.token_review.kubeconfig"
    )]
    NotInside(#[source] kube::config::InClusterError),
    /// The file cannot be used.
    #[error("kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: kube::config::KubeconfigError,
    },
    /// What the cluster's address or certificates say cannot be used.
    #[error("connect to the cluster: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl Cluster {
    /// The cluster of `kubeconfig`, or the one that kvd is a pod of.
    ///
    /// # Errors
    /// If it is not known how it is reached.
    pub async fn find(kubeconfig: Option<&Path>) -> Result<Cluster, ConnectError> {
        let mut how = match kubeconfig {
            None => Config::incluster().map_err(ConnectError::NotInside)?,
            Some(path) => {
                let wrong = |error| ConnectError::Kubeconfig { path: path.to_owned(), error };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
            }
        };
        how.connect_timeout = Some(CONNECT);
        how.read_timeout = Some(SILENCE);
        how.reset_reader_on_write = true;
        // The pauses are the askers' own.
        how.default_retry = false;
        let namespace = how.default_namespace.clone();
        let client = Client::try_from(how).map_err(|e| ConnectError::Client(Box::new(e)))?;
        Ok(Cluster { client, namespace })
    }
}

/// An error and what lies below it, in a line.
pub fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text.chars().take(300).collect()
}

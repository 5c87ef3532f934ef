//! What exactly does the index hold? `/dump`, a JSON array with one row per line.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use kvindex::{DumpRow, HolderId};
use kvproto::{EngineHash, Tier};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Http;
use super::error::Refusal;
use super::inspect::listed;
use super::params::{Filter, Params, read};
use crate::serve::Service;

/// Rows that are made at a time. Each piece goes over all blocks of a holder, so it is not small.
const ROWS: usize = 32 * 1024;

/// `GET /dump`
pub(super) async fn dump(State(http): State<Arc<Http>>, params: Params<Filter>) -> Result<Response, Refusal> {
    let holders = listed(&http, &read(params)?)
        .into_iter()
        .map(|p| Dumped { id: p.holder, instance: p.spec.instance_id, rank: p.spec.dp_rank })
        .collect();
    let (pieces, out) = mpsc::channel(1);
    tokio::spawn(send(Arc::clone(&http.service), holders, pieces));
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], Body::from_stream(ReceiverStream::new(out))).into_response())
}

/// Whose rows go out.
struct Dumped {
    id: HolderId,
    instance: String,
    rank: u32,
}

/// Why a dump ends before its end; the client sees a body that is cut off.
type Cut = tokio::task::JoinError;

/// Makes the next piece only when the one before it is on its way, and holds no thread while a
/// slow client reads.
async fn send(service: Arc<Service>, holders: Vec<Dumped>, pieces: mpsc::Sender<Result<Bytes, Cut>>) {
    let mut first = true;
    for holder in holders {
        let mut after = None;
        loop {
            let page = page(&service, holder.id, after);
            let rows = match page.await {
                Ok(rows) => rows,
                Err(cut) => {
                    let _ = pieces.send(Err(cut)).await;
                    return;
                }
            };
            let Some(last) = rows.last() else { break };
            after = Some((last.block, last.tier));
            let mut text = String::with_capacity(rows.len() * 96);
            for row in &rows {
                text.push_str(if first { "[\n" } else { ",\n" });
                first = false;
                write_row(&mut text, &holder, row);
            }
            if pieces.send(Ok(text.into())).await.is_err() {
                return; // the client is gone
            }
        }
    }
    let end = if first { "[]\n" } else { "\n]\n" };
    let _ = pieces.send(Ok(Bytes::from_static(end.as_bytes()))).await;
}

async fn page(
    service: &Arc<Service>,
    id: HolderId,
    after: Option<(EngineHash, Tier)>,
) -> Result<Vec<DumpRow>, Cut> {
    let service = Arc::clone(service);
    tokio::task::spawn_blocking(move || service.index.dump(id, after, ROWS)).await
}

fn write_row(out: &mut String, holder: &Dumped, row: &DumpRow) {
    let instance = serde_json::Value::from(holder.instance.as_str());
    let (rank, tier, block) = (holder.rank, row.tier.name(), row.block.0);
    let written = match row.depth {
        Some(depth) => write!(
            out,
            r#"{{"instance":{instance},"dp_rank":{rank},"tier":"{tier}","block":{block},"depth":{depth}}}"#
        ),
        None => write!(
            out,
            r#"{{"instance":{instance},"dp_rank":{rank},"tier":"{tier}","block":{block},"depth":null}}"#
        ),
    };
    written.expect("writing to a String does not fail");
}

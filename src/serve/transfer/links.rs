//! What are pods like, and what is known of the links between them?

use std::collections::BTreeMap;
use std::time::Duration;

use kvproto::rpc::kv;

use super::{TransferError, convert, pods};
use crate::serve::check::at_most;
use crate::serve::{AskError, Service, endpoint};
use crate::transfer::plans::LinkCost;
use crate::transfer::types::{Endpoint, Flow, Lesson};

/// A terabyte a second, which nothing reaches.
const MAX_BANDWIDTH: u64 = 1 << 40;

impl Service {
    /// Answers `SetTopology`.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn set_topology(
        &self,
        request: kv::SetTopologyRequest,
    ) -> Result<kv::SetTopologyResponse, TransferError> {
        let transfers = self.transfers()?;
        at_most("pods", transfers.config.max_pods, request.pods.len())?;
        let pods: Result<Vec<_>, AskError> = request.pods.into_iter().map(|p| pods::read(self, p)).collect();
        let pods = transfers.describe(pods?, request.replace)?;
        Ok(kv::SetTopologyResponse { pods: pods as u32 })
    }

    /// Answers `ReportLink`.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn report_link(
        &self,
        request: kv::ReportLinkRequest,
    ) -> Result<kv::ReportLinkResponse, TransferError> {
        let transfers = self.transfers()?;
        let from = convert::read_endpoint("from", request.from)?;
        let to = convert::read_endpoint("to", request.to)?;
        for pod in [&from, &to] {
            self.check_text("instance_id", &pod.instance)?;
        }
        if !(1..=MAX_BANDWIDTH).contains(&request.bytes_per_second) {
            let why = format!("is outside 1..{MAX_BANDWIDTH}");
            return Err(AskError::invalid("bytes_per_second", why).into());
        }
        let setup = Duration::from_micros(request.setup_us);
        if setup > Duration::from_secs(60) {
            return Err(AskError::invalid("setup_us", "is over a minute").into());
        }
        transfers.learn(&Lesson::Measured { from, to, bytes_per_second: request.bytes_per_second, setup });
        Ok(kv::ReportLinkResponse {})
    }

    /// Answers `ListLinks`: those of which something is known, and those in use.
    ///
    /// # Errors
    /// Where transfers are off.
    pub fn list_links(&self, request: kv::ListLinksRequest) -> Result<kv::ListLinksResponse, TransferError> {
        let transfers = self.transfers()?;
        let mut links: BTreeMap<(Endpoint, Endpoint), (LinkCost, Flow)> = BTreeMap::new();
        for (from, to, cost) in transfers.plans.links() {
            links.entry((from, to)).or_default().0 = cost;
        }
        transfers.book(|book| {
            for (from, to, flow) in book.reservations().links() {
                links.entry((from.clone(), to.clone())).or_default().1 = flow;
            }
        });
        let wanted = |pod: &Endpoint| {
            request.instance_id.is_empty() || endpoint::same(&pod.instance, &request.instance_id)
        };
        let links = links.into_iter().filter(|((from, to), _)| wanted(from) || wanted(to));
        let links = links.map(|((from, to), (cost, flow))| kv::TransferLink {
            from: Some(convert::endpoint(&from)),
            to: Some(convert::endpoint(&to)),
            bytes_per_second: cost.bytes_per_second,
            setup_us: cost.setup.as_micros() as u64,
            warm: cost.warm,
            inflight_transfers: flow.transfers,
            inflight_bytes: flow.bytes,
            transfers: cost.transfers,
            failures: cost.failures,
        });
        Ok(kv::ListLinksResponse { links: links.collect() })
    }
}

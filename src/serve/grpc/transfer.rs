//! `kv.v1.TransferService`.

use std::pin::Pin;
use std::sync::Arc;

use kvproto::rpc::kv;
use kvproto::rpc::kv::transfer_service_server::TransferService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::serve::Service;

/// Translates calls; the rules are in [`crate::serve::transfer`].
pub(super) struct TransferApi {
    service: Arc<Service>,
}

impl TransferApi {
    pub fn new(service: Arc<Service>) -> TransferApi {
        TransferApi { service }
    }
}

#[tonic::async_trait]
impl TransferService for TransferApi {
    type WatchTransfersStream = Pin<Box<dyn Stream<Item = Result<kv::TransferEvent, Status>> + Send>>;

    async fn plan_transfer(
        &self,
        request: Request<kv::PlanTransferRequest>,
    ) -> Result<Response<kv::PlanTransferResponse>, Status> {
        Ok(Response::new(self.service.plan_transfer(request.into_inner()).await?))
    }

    async fn report_transfer(
        &self,
        request: Request<kv::ReportTransferRequest>,
    ) -> Result<Response<kv::TransferReply>, Status> {
        Ok(Response::new(self.service.report_transfer(request.into_inner()).await?))
    }

    async fn renew_transfer(
        &self,
        request: Request<kv::RenewTransferRequest>,
    ) -> Result<Response<kv::TransferReply>, Status> {
        Ok(Response::new(self.service.renew_transfer(request.into_inner()).await?))
    }

    async fn cancel_transfer(
        &self,
        request: Request<kv::CancelTransferRequest>,
    ) -> Result<Response<kv::TransferReply>, Status> {
        Ok(Response::new(self.service.cancel_transfer(request.into_inner()).await?))
    }

    async fn get_transfer(
        &self,
        request: Request<kv::GetTransferRequest>,
    ) -> Result<Response<kv::TransferReply>, Status> {
        Ok(Response::new(self.service.get_transfer(request.into_inner()).await?))
    }

    async fn list_transfers(
        &self,
        request: Request<kv::ListTransfersRequest>,
    ) -> Result<Response<kv::ListTransfersResponse>, Status> {
        Ok(Response::new(self.service.list_transfers(request.into_inner()).await?))
    }

    async fn watch_transfers(
        &self,
        request: Request<kv::WatchTransfersRequest>,
    ) -> Result<Response<Self::WatchTransfersStream>, Status> {
        let mut watcher = self.service.watch_transfers(request.into_inner())?;
        let (events, stream) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = watcher.next() => event,
                    // A client that went away is noticed also while nothing happens.
                    () = events.closed() => None,
                };
                let Some(event) = event else { return };
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))))
    }

    async fn select_source(
        &self,
        request: Request<kv::SelectSourceRequest>,
    ) -> Result<Response<kv::SelectSourceResponse>, Status> {
        Ok(Response::new(self.service.select_source(request.into_inner()).await?))
    }

    async fn estimate_transfer(
        &self,
        request: Request<kv::PlanTransferRequest>,
    ) -> Result<Response<kv::EstimateTransferResponse>, Status> {
        Ok(Response::new(self.service.estimate_transfer(request.into_inner()).await?))
    }

    async fn set_topology(
        &self,
        request: Request<kv::SetTopologyRequest>,
    ) -> Result<Response<kv::SetTopologyResponse>, Status> {
        Ok(Response::new(self.service.set_topology(request.into_inner())?))
    }

    async fn report_link(
        &self,
        request: Request<kv::ReportLinkRequest>,
    ) -> Result<Response<kv::ReportLinkResponse>, Status> {
        Ok(Response::new(self.service.report_link(request.into_inner())?))
    }

    async fn list_links(
        &self,
        request: Request<kv::ListLinksRequest>,
    ) -> Result<Response<kv::ListLinksResponse>, Status> {
        Ok(Response::new(self.service.list_links(request.into_inner())?))
    }
}

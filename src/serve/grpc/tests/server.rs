//! The server itself: health, its end, what it says of itself and what it refuses.

use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Kvd, ask, tokens};
use crate::serve::Limits;

#[tokio::test]
async fn health_follows_readiness() {
    let kvd = Kvd::start().await;
    let health = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(kvd.channel.clone());
        client.check(request).await.map(|r| r.into_inner().status())
    };
    for service in ["", "liveness", "readiness", "kv.v1.IndexService"] {
        // The server reports its services once it runs, which may be after the first call.
        while health(service).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(health(service).await.unwrap(), ServingStatus::Serving, "{service}");
    }
    kvd.service.set_ready(false);
    while health("kv.v1.IndexService").await.unwrap() == ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    assert_eq!(health("readiness").await.unwrap(), ServingStatus::NotServing);
    assert_eq!(health("liveness").await.unwrap(), ServingStatus::Serving);
    assert_eq!(health("nobody").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_shutdown_ends_readiness_and_the_server_with_clients_connected() {
    let kvd = Kvd::start().await;
    assert!(kvd.index().score(ask(tokens(5))).await.is_ok());
    kvd.stop.send(()).unwrap();
    kvd.served.await.unwrap().unwrap();
    assert!(!kvd.service.is_ready());
    assert!(IndexServiceClient::new(kvd.channel).score(ask(tokens(5))).await.is_err());
}

#[tokio::test]
async fn the_services_describe_themselves() {
    use tonic_reflection::pb::{v1, v1alpha};

    let kvd = Kvd::start().await;
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "indexer.v1.IndexerService",
        "kv.v1.AdminService",
        "kv.v1.IndexService",
        "kv.v1.IngestService",
        "kv.v1.PeerService",
        "kv.v1.TierService",
        "kv.v1.TransferService",
    ];
    let ask = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1::ServerReflectionRequest { message_request: Some(ask), ..Default::default() };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(kvd.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    names.sort_unstable();
    assert_eq!(names, expected);

    // Older clients ask by the older name.
    let ask = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1alpha::ServerReflectionRequest { message_request: Some(ask), ..Default::default() };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(kvd.channel.clone());
    assert!(client.server_reflection_info(tokio_stream::iter([ask])).await.is_ok());
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
    let kvd = Kvd::start_with(Limits { max_body_bytes: 1000, ..Limits::default() }).await;
    let refused = kvd.index().score(ask(tokens(1000))).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(kvd.index().score(ask(tokens(10))).await.is_ok());
}

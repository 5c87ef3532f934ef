//! Which right does a call need?
//!
//! A call that is not named here needs the highest one.

use http::Method;

/// A right. Who has one has those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// None: whether kvd is alive and ready.
    Open,
    /// To ask about prompts and to look at what kvd knows.
    Read,
    /// To announce routings, to report outcomes, and to coordinate transfers.
    Route,
    /// To say who is followed, to change what tiers keep, and to be a replica.
    Write,
}

impl Access {
    /// Its name, as an error tells it.
    pub fn name(self) -> &'static str {
        match self {
            Access::Open => "open",
            Access::Read => "read",
            Access::Route => "route",
            Access::Write => "write",
        }
    }

    /// Its place among those that tokens give.
    pub(super) fn place(self) -> Option<usize> {
        match self {
            Access::Open => None,
            Access::Read => Some(0),
            Access::Route => Some(1),
            Access::Write => Some(2),
        }
    }

    /// What a gRPC call needs, by its path: `/package.Service/Method`.
    pub fn of_grpc(path: &str) -> Access {
        let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
            return Access::Write;
        };
        match (service, method) {
            ("grpc.health.v1.Health", _) => Access::Open,
            ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
                Access::Read
            }
            ("kv.v1.IndexService", "Score" | "ScoreStream" | "LocateBlocks" | "GetHashSpec") => Access::Read,
            (
                "kv.v1.IndexService",
                "RecordRouting" | "ForgetRouting" | "ReportOutcome" | "ReportOutcomes",
            ) => Access::Route,
            ("indexer.v1.IndexerService", "GetPodScores") => Access::Read,
            ("kv.v1.IngestService", "ListPublishers") => Access::Read,
            ("kv.v1.AdminService", "Dump" | "ExplainScore" | "Stats" | "GetWarmup" | "Diagnose") => {
                Access::Read
            }
            (
                "kv.v1.TransferService",
                "GetTransfer" | "ListTransfers" | "WatchTransfers" | "SelectSource" | "EstimateTransfer"
                | "ListLinks",
            ) => Access::Read,
            (
                "kv.v1.TransferService",
                "PlanTransfer" | "ReportTransfer" | "RenewTransfer" | "CancelTransfer" | "SetTopology"
                | "ReportLink",
            ) => Access::Route,
            ("kv.v1.TierService", "GetTierUsage") => Access::Read,
            ("kv.v1.TierService", "Hint") => Access::Route,
            _ => Access::Write,
        }
    }

    /// What an HTTP request needs.
    pub fn of_http(method: &Method, path: &str) -> Access {
        let looks = method == Method::GET || method == Method::HEAD;
        match path {
            "/" | "/healthz" | "/readyz" if looks => Access::Open,
            // The page itself; what it shows is asked for.
            _ if looks && path.starts_with("/page/") => Access::Open,
            "/query"
            | "/query_by_hash"
            | "/v1/explain"
            | "/v1/transfers/estimate"
            | "/v1/transfers/source" => Access::Read,
            _ if looks => Access::Read,
            "/report_outcome" => Access::Route,
            _ if path.starts_with("/v1/") => Access::Route,
            _ => Access::Write,
        }
    }
}

//! How our service is reached: the bridge itself has it, or it is spoken over the reference's.

use skep_bridge_protocol::workspace::workspace_server::WorkspaceServer;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service, StdError};
use tonic::transport::Channel;

use super::OverReference;

/// The one place that decides, for every call.
#[derive(Clone)]
pub(crate) enum Route {
    /// Over the wire.
    Own(Channel),
    /// In this process, and from there over the wire.
    OverReference(WorkspaceServer<OverReference>),
}

impl Service<Request<Body>> for Route {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        match self {
            Self::Own(channel) => channel.poll_ready(context).map_err(StdError::from),
            Self::OverReference(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Self::Own(channel) => {
                let call = channel.call(request);
                Box::pin(async move { call.await.map_err(StdError::from) })
            }
            Self::OverReference(service) => {
                let call = service.call(request);
                Box::pin(async move { call.await.map_err(|never| match never {}) })
            }
        }
    }
}

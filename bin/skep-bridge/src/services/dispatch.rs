//! Which of the two services a request is for. Two names need no router, and a router is a quarter of a megabyte.

use std::convert::Infallible;
use std::future::ready;

use skep_bridge_protocol::bridgepb::container_service_server::{ContainerServiceServer, SERVICE_NAME as REFERENCE};
use skep_bridge_protocol::workspace::workspace_server::{SERVICE_NAME as WORKSPACE, WorkspaceServer};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};

use super::{Reference, WorkspaceService};

#[derive(Clone)]
pub(crate) struct BothServices {
    pub(crate) reference: ContainerServiceServer<Reference>,
    pub(crate) workspace: WorkspaceServer<WorkspaceService>,
}

impl Service<Request<Body>> for BothServices {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request
            .uri()
            .path()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        if service == REFERENCE {
            self.reference.call(request)
        } else if service == WORKSPACE {
            self.workspace.call(request)
        } else {
            let status = Status::unimplemented(format!("no service {service:?} in this bridge"));
            Box::pin(ready(Ok(status.into_http())))
        }
    }
}

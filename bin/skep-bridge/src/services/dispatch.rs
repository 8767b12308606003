//! Which of the two services a request is for. Two names need no router, and a router is a quarter of a megabyte.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;

use http_body::{Frame, SizeHint};
use skep_bridge_protocol::bridgepb::container_service_server::{ContainerServiceServer, SERVICE_NAME as REFERENCE};
use skep_bridge_protocol::workspace::workspace_server::{SERVICE_NAME as WORKSPACE, WorkspaceServer};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Bytes, Context, Poll, Service};
use tonic::{Code, Status};

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
            self.reference.call(request.map(|body| Body::new(CutIsAnError(body))))
        } else if service == WORKSPACE {
            self.workspace.call(request.map(|body| Body::new(CutIsAnError(body))))
        } else {
            let status = Status::unimplemented(format!("no service {service:?} in this bridge"));
            Box::pin(ready(Ok(status.into_http())))
        }
    }
}

/// A request that its client gave up. To tonic that is an ordinary end of the stream, and half an upload would take
/// the place of the old file.
struct CutIsAnError(Body);

impl http_body::Body for CutIsAnError {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(context).map(|frame| match frame {
            Some(Err(status)) if status.code() == Code::Cancelled => {
                Some(Err(Status::aborted("the client gave the request up")))
            }
            frame => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

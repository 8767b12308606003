//! The network of workspaces with real plugins, real namespaces, real rules. Needs root, the CNI plugins, nft,
//! iproute2 and util-linux.

mod attachment;
mod isolation;
mod probe;
mod rules;
mod stage;
mod system_calls;

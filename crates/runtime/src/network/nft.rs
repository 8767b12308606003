//! The `nft` program.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::error::NetworkError;
use super::program::Program;
use super::rules::{FLOW_SETS, PORTS};

/// Replacing our table takes about 20 ms.
const LIMIT: Duration = Duration::from_secs(15);

/// A table as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// The host-side interfaces that it holds for.
    pub(super) ports: BTreeSet<String>,
    /// All else, in a form that is equal when the rules are.
    pub(super) rest: Value,
}

/// A table and the program to change it with.
#[derive(Debug, Clone)]
pub(super) struct Nft {
    pub(super) program: PathBuf,
    pub(super) table: String,
}

impl Nft {
    /// Runs a text of commands: all of them take effect, or none.
    pub(super) async fn apply(&self, operation: &'static str, text: &str) -> Result<(), NetworkError> {
        self.run(operation, &["-f", "-"], text).await.map(drop)
    }

    /// Our table as the kernel has it.
    pub(super) async fn listing(&self) -> Result<Listing, NetworkError> {
        let operation = "list the table";
        let output = self
            .run(operation, &["-j", "-s", "list", "table", "inet", &self.table], "")
            .await?;
        Ok(canonical(parse(operation, &output)?))
    }

    /// Every chain of every table.
    pub(super) async fn chains(&self) -> Result<Value, NetworkError> {
        let operation = "list chains";
        let output = self.run(operation, &["-j", "list", "chains"], "").await?;
        parse(operation, &output)
    }

    /// The rules of one chain, as text.
    pub(super) async fn chain(&self, family: &str, table: &str, chain: &str) -> Result<String, NetworkError> {
        let output = self
            .run("list a chain", &["list", "chain", family, table, chain], "")
            .await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    async fn run(&self, operation: &'static str, arguments: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
        let program = Program {
            path: self.program.clone(),
            arguments,
            environment: &[],
            input: input.as_bytes(),
            limit: LIMIT,
        };
        let finished = program.run().await?;
        if finished.succeeded {
            return Ok(finished.output);
        }
        Err(NetworkError::Nft {
            operation,
            reason: finished.errors.lines().take(5).collect::<Vec<_>>().join("; "),
        })
    }
}

fn parse(operation: &'static str, output: &[u8]) -> Result<Value, NetworkError> {
    serde_json::from_slice(output).map_err(|error| NetworkError::Nft {
        operation,
        reason: format!("its answer is not JSON: {error}"),
    })
}

/// Sets are listed in no fixed order, handles change with each load, and what the kernel counts with each connection.
fn canonical(mut listing: Value) -> Listing {
    let mut ports = BTreeSet::new();
    strip(&mut listing, &mut ports);
    Listing { ports, rest: listing }
}

fn strip(value: &mut Value, ports: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("metainfo");
            let counts = |name: &Value| name.as_str().is_some_and(|name| FLOW_SETS.contains(&name));
            if fields.contains_key("elem") && fields.get("name").is_some_and(counts) {
                fields.remove("elem");
            }
            if fields.get("name").is_some_and(|name| name == PORTS)
                && let Some(Value::Array(elements)) = fields.get_mut("elem")
            {
                // What is no name stays, and is a difference.
                elements.retain(|element| element.as_str().is_none_or(|name| !ports.insert(name.to_owned())));
                if elements.is_empty() {
                    fields.remove("elem");
                }
            }
            fields.values_mut().for_each(|field| strip(field, ports));
            for name in ["elem", "set"] {
                if let Some(Value::Array(elements)) = fields.get_mut(name) {
                    elements.sort_by_cached_key(Value::to_string);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, ports)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn handles_and_the_order_of_sets_make_no_difference() {
        let one = json!({"nftables": [{"metainfo": {"version": "1"}}, {"set": {"handle": 1, "elem": ["a", "b"]}}]});
        let other = json!({"nftables": [{"metainfo": {"version": "2"}}, {"set": {"handle": 9, "elem": ["b", "a"]}}]});
        assert_eq!(canonical(one), canonical(other));
    }

    #[test]
    fn what_the_kernel_counts_makes_no_difference() {
        let none = json!({"nftables": [{"set": {"name": "flows4", "size": 65536}}]});
        let counted = json!({"val": "10.88.0.5", "ct count": {"val": 4096, "inv": true}});
        let some = json!({"nftables": [{"set": {"name": "flows4", "size": 65536, "elem": [{"elem": counted}]}}]});
        assert_eq!(canonical(none), canonical(some));
    }

    #[test]
    fn ports_are_listed_beside_the_rest() {
        let none = json!({"nftables": [{"set": {"name": "ports", "type": "ifname"}}]});
        let some = json!({"nftables": [{"set": {"name": "ports", "type": "ifname", "elem": ["veth1", "skep0"]}}]});
        let (none, some) = (canonical(none), canonical(some));
        assert_eq!(some.rest, none.rest);
        assert!(none.ports.is_empty());
        assert_eq!(some.ports, ["skep0", "veth1"].map(str::to_owned).into());
        let strange = json!({"nftables": [{"set": {"name": "ports", "type": "ifname", "elem": [{"timeout": 1}]}}]});
        assert_ne!(canonical(strange).rest, none.rest);
    }

    #[test]
    fn the_order_of_rules_makes_one() {
        let one = json!({"nftables": [{"rule": {"expr": [{"accept": null}]}}, {"rule": {"expr": [{"drop": null}]}}]});
        let other = json!({"nftables": [{"rule": {"expr": [{"drop": null}]}}, {"rule": {"expr": [{"accept": null}]}}]});
        assert_ne!(canonical(one), canonical(other));
    }
}

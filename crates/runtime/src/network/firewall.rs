//! Other firewalls on the host: an accept of ours does not overrule their drop.

use serde_json::Value;

use super::error::NetworkError;
use super::nft::Nft;
use super::program::{Program, SEARCH_PATH};

/// Every base chain on forwarding, outside our table, whose policy is drop and that says nothing about our
/// bridge: a sentence each, with the mend.
pub(super) async fn forward_findings(nft: &Nft, bridge: &str) -> Result<Vec<String>, NetworkError> {
    let mut findings = Vec::new();
    for chain in dropping_chains(&nft.chains().await?, &nft.table) {
        let text = nft.chain(&chain.family, &chain.table, &chain.name).await?;
        if !text.contains(&format!("\"{bridge}\"")) {
            findings.push(chain.finding(bridge));
        }
    }
    findings.extend(legacy_finding(bridge).await?);
    Ok(findings)
}

#[derive(Debug, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
}

impl Chain {
    fn finding(&self, bridge: &str) -> String {
        let Self { family, table, name } = self;
        let place = format!("{family} {table} {name}");
        format!(
            "the firewall chain {place} drops what is forwarded, so workspaces do not reach the internet; let it pass \
             with: nft insert rule {place} iifname \"{bridge}\" accept; \
             nft insert rule {place} oifname \"{bridge}\" ct state established,related accept"
        )
    }
}

fn dropping_chains(listing: &Value, own_table: &str) -> Vec<Chain> {
    let entries = listing.get("nftables").and_then(Value::as_array).into_iter().flatten();
    entries
        .filter_map(|entry| entry.get("chain"))
        .filter_map(|chain| {
            let text = |name| chain.get(name).and_then(Value::as_str);
            let drops = text("hook") == Some("forward") && text("policy") == Some("drop");
            let found = Chain {
                family: text("family")?.to_owned(),
                table: text("table")?.to_owned(),
                name: text("name")?.to_owned(),
            };
            let concerns = matches!(found.family.as_str(), "ip" | "inet");
            let ours = found.family == "inet" && found.table == own_table;
            (drops && concerns && !ours).then_some(found)
        })
        .collect()
}

/// The older iptables, which nftables does not list. Only asked when the kernel has its filter table in use:
/// asking would load it.
async fn legacy_finding(bridge: &str) -> Result<Option<String>, NetworkError> {
    let used = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if !used.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    let program = SEARCH_PATH
        .split(':')
        .map(|directory| format!("{directory}/iptables-legacy"));
    let Some(path) = program.map(std::path::PathBuf::from).find(|path| path.is_file()) else {
        return Ok(Some(
            "the kernel's old filter table is in use and iptables-legacy is not installed, so it is not known \
             whether it drops what workspaces send"
                .into(),
        ));
    };
    let program = Program {
        path,
        arguments: &["-w", "5", "-S", "FORWARD"],
        environment: &[],
        input: b"",
        limit: std::time::Duration::from_secs(15),
    };
    let finished = program.run().await?;
    let rules = String::from_utf8_lossy(&finished.output).into_owned();
    let drops = finished.succeeded && rules.lines().any(|rule| rule == "-P FORWARD DROP");
    let mended = rules.contains(&format!("-i {bridge} "));
    Ok((drops && !mended).then(|| {
        format!(
            "the FORWARD policy of iptables-legacy is DROP, so workspaces do not reach the internet; let it pass with: \
             iptables-legacy -I FORWARD -i {bridge} -j ACCEPT; \
             iptables-legacy -I FORWARD -o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_others_forward_chains_that_drop_are_found() {
        let chain = |family: &str, table: &str, hook: &str, policy: &str| json!({"chain": {"family": family, "table": table, "name": "FORWARD", "hook": hook, "policy": policy}});
        let listing = json!({"nftables": [
            {"metainfo": {}},
            chain("ip", "filter", "forward", "drop"),
            chain("ip", "filter", "input", "drop"),
            chain("ip6", "filter", "forward", "drop"),
            chain("inet", "fw", "forward", "accept"),
            chain("inet", "skep", "forward", "drop"),
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}
        ]});
        let found = dropping_chains(&listing, "skep");
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .finding("skep0")
                .contains("nft insert rule ip filter FORWARD iifname \"skep0\" accept")
        );
    }
}

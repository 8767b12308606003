//! What can be typed after `skep port-forward`.

use std::str::FromStr;

use clap::Args;

use super::Named;

#[derive(Debug, Args)]
pub(crate) struct PortForwardArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Which port here leads to which port there; one number: the same; 0 or nothing before the colon: any free one
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub(crate) ports: Vec<PortPair>,
}

/// A port here and the one there that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortPair {
    /// 0: any that is free.
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
        let (local, remote) = match text.split_once(':') {
            Some(("", remote)) => (0, number(remote)?),
            Some((local, remote)) => (number(local)?, number(remote)?),
            None => (number(text)?, number(text)?),
        };
        match remote {
            0 => Err("a port there is a number from 1 to 65535".to_owned()),
            _ => Ok(Self { local, remote }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_kubectl_takes_them() {
        for (text, local, remote) in [("8080:80", 8080, 80), ("80", 80, 80), (":80", 0, 80), ("0:80", 0, 80)] {
            assert_eq!(text.parse(), Ok(PortPair { local, remote }));
        }
        for bad in ["", ":", "80:", "x", "8080:0", "65536", "1:2:3", "-1"] {
            assert!(bad.parse::<PortPair>().is_err(), "{bad:?}");
        }
    }
}

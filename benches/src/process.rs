//! What processes cost, as the kernel tells it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::Result;

/// What /proc counts in, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// All that it has in memory, shared with others or not.
pub(crate) fn resident_bytes(process: u32) -> Result<u64> {
    kibibytes(&format!("/proc/{process}/status"), &["VmRSS:"])
}

/// What it alone has in memory.
pub(crate) fn private_bytes(process: u32) -> Result<u64> {
    let file = format!("/proc/{process}/smaps_rollup");
    kibibytes(&file, &["Private_Clean:", "Private_Dirty:"])
}

/// Of the file it runs.
pub(crate) fn program_bytes(process: u32) -> Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{process}/exe"))?.len())
}

/// User and system time so far.
pub(crate) fn processor_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, fields) = stat.rsplit_once(')').ok_or("an unreadable /proc file")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Which process listens on a socket.
pub(crate) fn listener(socket: &Path) -> Result<u32> {
    let stream = UnixStream::connect(socket)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(u32::try_from(peer.pid.as_raw_nonzero().get())?)
}

/// The sum of these lines, in bytes.
fn kibibytes(file: &str, names: &[&str]) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let mut sum = 0;
    for name in names {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let number = number.ok_or_else(|| format!("{file} has no {name}"))?;
        sum += number.trim().parse::<u64>()? * 1024;
    }
    Ok(sum)
}

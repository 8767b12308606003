//! What process 1 of a fake workspace and those it has waited for used: there is no control group to ask.

use std::io;

use skep_runtime::Usage;

/// Of one second, the ticks that `/proc` counts in: the same on every Linux.
const NANOSECONDS_OF_A_TICK: u64 = 10_000_000;

/// Counters of a process of the host.
pub(super) fn of_process(pid: i32) -> io::Result<Usage> {
    let (user, kernel) = processor_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu_nanoseconds: Some(user + kernel),
        cpu_user_nanoseconds: Some(user),
        cpu_kernel_nanoseconds: Some(kernel),
        memory_bytes: Some(resident_bytes(&status)?),
        ..Usage::default()
    })
}

/// In user mode and in the kernel, its children that have ended included.
fn processor_time(stat: &str) -> io::Result<(u64, u64)> {
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(|| io::Error::other("no name in it"))?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Fields 14 to 17 of proc(5); `fields` begins with the third.
    let ticks = |number: usize| {
        let field = fields.get(number - 3).copied().unwrap_or_default();
        field.parse::<u64>().map_err(io::Error::other)
    };
    let user = (ticks(14)? + ticks(16)?) * NANOSECONDS_OF_A_TICK;
    let kernel = (ticks(15)? + ticks(17)?) * NANOSECONDS_OF_A_TICK;
    Ok((user, kernel))
}

fn resident_bytes(status: &str) -> io::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.unwrap_or("0").trim().trim_end_matches(" kB").parse::<u64>();
    Ok(kibibytes.map_err(io::Error::other)? * 1024)
}

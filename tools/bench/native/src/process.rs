//! What a process and its children have used, as the kernel counts it.

use std::collections::HashMap;
use std::fs;
use std::io;

/// At one moment.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// User and system time, in nanoseconds.
    pub cpu: u64,
    /// In RAM, in bytes, without what is a file's: which code has run is not a question of memory.
    pub memory: u64,
    /// The most that was ever in RAM, files included.
    pub peak: u64,
}

/// Of the process and all that descend from it.
pub fn usage(root: i32) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for pid in tree(root)? {
        sum.cpu += cpu(pid)?;
        sum.memory += field(pid, "smaps_rollup", "Anonymous:")?;
        sum.peak += field(pid, "status", "VmHWM:")?;
    }
    Ok(sum)
}

/// Of this process.
pub fn own_cpu() -> io::Result<u64> {
    cpu(std::process::id() as i32)
}

/// A process has a clock that others may read. It also counts threads that are gone, and is exact,
/// unlike the ticks in /proc/PID/stat.
fn cpu(pid: i32) -> io::Result<u64> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to values of the right type.
    let rc = unsafe {
        match libc::clock_getcpuclockid(pid, &mut clock) {
            0 => libc::clock_gettime(clock, &mut time),
            rc => return Err(io::Error::from_raw_os_error(rc)),
        }
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A line "NAME 123 kB" of a file in /proc/PID, in bytes.
fn field(pid: i32, file: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/{file} has no {name}")))
}

fn tree(root: i32) -> io::Result<Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // It may be gone meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        // "PID (NAME) STATE PARENT ...", and the name may have anything in it.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut pids = vec![root];
    let mut at = 0;
    while at < pids.len() {
        pids.extend(children.remove(&pids[at]).unwrap_or_default());
        at += 1;
    }
    Ok(pids)
}

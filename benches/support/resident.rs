//! What a process takes of memory and of the processors, as `/proc` has it.

use std::time::Duration;
use std::{fs, io};

/// Kibibytes.
pub struct Memory {
    pub resident: f64,
    pub anonymous: f64,
    pub file: f64,
    pub peak: f64,
    /// What is shared with other processes, as the program is, counts for each one's part of it.
    pub proportional: f64,
}

impl Memory {
    pub fn of(pid: u32) -> io::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let text = read("status")? + &read("smaps_rollup")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.ok_or_else(|| io::Error::other(format!("no {name} in the process's status")))
        };
        Ok(Self {
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            file: field("RssFile:")?,
            peak: field("VmHWM:")?,
            proportional: field("Pss:")?,
        })
    }
}

/// Processor time of a process with all its threads, those that ended included, to the kernel's
/// tick.
pub fn processor_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the command: utime and stime are the 12th and 13th.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else { return Err(io::Error::other("no times in stat")) };
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(Duration::from_secs_f64((user + system) as f64 / per_second))
}

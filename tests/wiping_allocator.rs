//! With the wiping allocator nothing of a freed or grown buffer is left in the process's memory.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use secrets_broker::sys::WipingAllocator;

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

/// The canary, never in clear in this binary: every byte is stored with its bits flipped.
const FLIPPED: [u8; 24] = {
    let mut bytes = *b"wiping-allocator-canary.";
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] ^= 0xff;
        at += 1;
    }
    bytes
};

fn is_canary(window: &[u8]) -> bool {
    window.iter().zip(FLIPPED).all(|(byte, flipped)| *byte == !flipped)
}

/// Counts the canaries in all writable memory of this process.
fn canaries() -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut page = vec![0; 4096 + FLIPPED.len() - 1];
        for at in (start..end).step_by(4096) {
            let read = memory.read_at(&mut page, at).unwrap_or(0);
            let own_buffer = page.as_ptr() as u64;
            let first_of_next_page = 4096.min(read);
            for (offset, window) in page[..read].windows(FLIPPED.len()).enumerate() {
                let address = at + offset as u64;
                let in_own_buffer = (own_buffer..own_buffer + page.len() as u64).contains(&address);
                count +=
                    usize::from(offset < first_of_next_page && !in_own_buffer && is_canary(window));
            }
        }
    }
    count
}

/// A buffer with 64 canaries that moved to bigger blocks several times while it was filled.
fn grown_buffer() -> Vec<u8> {
    let mut buffer = Vec::with_capacity(8);
    for _ in 0..64 {
        buffer.extend(FLIPPED.iter().map(|byte| !byte));
    }
    black_box(buffer)
}

#[test]
fn nothing_of_a_freed_or_grown_buffer_is_left() {
    let live = grown_buffer();
    let while_live = canaries();
    assert!(while_live >= 64, "the scan sees a live buffer: {while_live}");
    assert!(while_live < 80, "growing left copies behind: {while_live}");
    drop(live);
    assert_eq!(canaries(), 0, "a freed buffer keeps its content");
}

//! What depends on the processor: where a stopped process stands.
//!
//! On x86_64 a step always ends. On aarch64 a step inside a load-exclusive/store-exclusive loop clears the monitor, and
//! the loop never ends; on processors with LSE the standard library and libc use single instructions instead, so the
//! harness wants such a processor (or `-C target-feature=+lse`) there, and says so when it finds itself in a loop.
#![allow(unsafe_code, reason = "reads registers of a traced process")]

/// Steps at few addresses after which an operation counts as caught in a loop.
pub const STEPS_MAX: u64 = 20_000_000;

/// The address of the next instruction.
#[cfg(target_arch = "x86_64")]
pub fn program_counter(pid: i32) -> u64 {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    // SAFETY: the process is traced by us and stopped; the kernel fills the struct.
    unsafe {
        let code = libc::ptrace(
            libc::PTRACE_GETREGS,
            pid,
            std::ptr::null_mut::<u8>(),
            registers.as_mut_ptr(),
        );
        if code == 0 {
            registers.assume_init().rip
        } else {
            0
        }
    }
}

/// The address of the next instruction.
#[cfg(target_arch = "aarch64")]
pub fn program_counter(pid: i32) -> u64 {
    const NT_PRSTATUS: usize = 1;
    let mut registers = [0u64; 34];
    let mut part = libc::iovec {
        iov_base: registers.as_mut_ptr().cast(),
        iov_len: size_of_val(&registers),
    };
    // SAFETY: the process is traced by us and stopped; the kernel fills at most the length given.
    let code = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, &raw mut part) };
    if code == 0 { registers[32] } else { 0 }
}

/// What to say when an operation does not end.
pub const ENDLESS: &str = if cfg!(target_arch = "aarch64") {
    "the operation does not end: is this a processor without LSE? build with -C target-feature=+lse on one that has it"
} else {
    "the operation does not end"
};

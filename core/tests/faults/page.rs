//! Memory beside the arena in which processes of the harness tell each other what happened.
#![allow(unsafe_code, reason = "maps memory")]

use std::sync::atomic::{AtomicU32, Ordering};

const LENGTH: usize = 64 * 1024;

/// A page shared with all processes forked after it was made: some numbers, and a text.
#[derive(Clone, Copy)]
pub struct Page {
    words: &'static [AtomicU32],
    text: *mut u8,
}

/// The words of a page.
#[derive(Clone, Copy)]
pub enum Word {
    /// The length of the text.
    Length = 0,
    /// The survivor may go on: the victim is dead.
    Killed = 1,
    /// The survivor has done what it can while the victim is stopped.
    Arrived = 2,
}

impl Page {
    pub fn new() -> Page {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping, zero, never unmapped; the words lie before the text.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), LENGTH, access, kind, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "no memory for a page");
            Page {
                words: std::slice::from_raw_parts(base.cast(), 16),
                text: base.cast::<u8>().add(64),
            }
        }
    }

    pub fn get(self, word: Word) -> u32 {
        self.words[word as usize].load(Ordering::SeqCst)
    }

    pub fn set(self, word: Word, value: u32) {
        self.words[word as usize].store(value, Ordering::SeqCst);
    }

    /// Replaces the text.
    pub fn write(self, text: &str) {
        let bytes = &text.as_bytes()[..text.len().min(LENGTH - 64)];
        // SAFETY: inside the mapping; readers look after this process has ended, or see an old text.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.text, bytes.len()) };
        self.set(Word::Length, bytes.len() as u32);
    }

    pub fn read(self) -> String {
        let length = self.get(Word::Length) as usize;
        // SAFETY: inside the mapping, by `write`.
        let bytes = unsafe { std::slice::from_raw_parts(self.text, length.min(LENGTH - 64)) };
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl Page {
    /// The one page of this process that is used over and over, for one child at a time.
    pub fn new_shared() -> Page {
        use std::cell::Cell;
        thread_local! {
            static PAGE: Cell<Option<Page>> = const { Cell::new(None) };
        }
        PAGE.get().unwrap_or_else(|| {
            let page = Page::new();
            PAGE.set(Some(page));
            page
        })
    }
}

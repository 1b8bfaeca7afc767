//! Plain bytes in shared memory, and the numbers among them.

use super::check_range;
use crate::error::{Error, Result};
use crate::memory::family::Family;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use std::fmt;
use std::mem::size_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// This kind's number.
pub(crate) const CELL: u32 = 9;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("cell");

shared! {
    /// Before the bytes. One line long, so that they begin on one.
    struct Body: 64 {
        length: AtomicU64,
        reserved: [AtomicU64; 7],
    }
}

/// Bytes that every process of the family reads and writes in place.
///
/// Whole ranges are copied without any lock: what another process writes meanwhile may be mixed in. The numbers are
/// atomic and sequentially consistent, little more than the machine's own; they lie at multiples of their size.
///
/// ```
/// use procession_core::shared::Cell;
///
/// let family = procession_core::family().create()?;
/// let cell = Cell::create(family, 16)?;
/// cell.write(0, b"hello")?;
/// assert_eq!(cell.load_u8(4)?, b'o');
/// assert_eq!(cell.fetch_add_u64(8, 5)?, 0);
/// assert_eq!(cell.load_u64(8)?, 5);
/// assert!(cell.write(12, b"hello").is_err());
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Cell {
    hold: Attached,
    /// Where the bytes lie.
    start: u64,
    length: u64,
}

impl Cell {
    /// Creates a cell of `bytes` zero bytes, which begin at a multiple of 64.
    ///
    /// Fails with [`Error::Exhausted`] when the arena has no room for it.
    pub fn create(family: &'static Family, bytes: u64) -> Result<Cell> {
        let length = (size_of::<Body>() as u64)
            .checked_add(bytes)
            .filter(|length| *length <= family.region().reserve())
            .ok_or(Error::Exhausted {
                what: "the arena's memory",
                limit: family.region().reserve(),
            })?;
        let hold = object::create(family, CELL, length, |_, body| {
            let body = family.region().view::<Body>(body)?;
            body.length.store(bytes, Ordering::Release);
            Ok(())
        })?;
        Cell::over(hold)
    }

    /// Attaches to the cell of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living cell.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Cell> {
        Cell::over(object::attach(family, CELL, handle)?)
    }

    fn over(hold: Attached) -> Result<Cell> {
        let length = hold.view::<Body>()?.length.load(Ordering::Acquire);
        let start = hold.body() + size_of::<Body>() as u64;
        // The length never changes: looked at once, it is right for as long as we hold the cell.
        hold.family().region().pointer(start, length)?;
        Ok(Cell {
            hold,
            start,
            length,
        })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// How many bytes it has.
    #[expect(
        clippy::len_without_is_empty,
        reason = "its length is chosen when it is created"
    )]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Where the bytes lie in this process, for who shares them with another language. It is valid while the cell, or a
    /// clone of it, is held; other processes write there at any moment.
    pub fn as_ptr(&self) -> *mut u8 {
        let pointer = self.hold.family().region().pointer(self.start, self.length);
        pointer.expect("checked when the cell was attached")
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// Fails with [`Error::TooLarge`] beyond the end; then nothing is read.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        check_range("the range of the cell", offset, bytes.len(), self.length)?;
        self.hold
            .family()
            .region()
            .copy_out(self.start + offset, bytes)
    }

    /// Copies bytes in, from `offset` on. A death in the middle leaves a part of them.
    ///
    /// Fails with [`Error::TooLarge`] beyond the end; then nothing is written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range("the range of the cell", offset, bytes.len(), self.length)?;
        self.hold
            .family()
            .region()
            .copy_in(self.start + offset, bytes)
    }

    /// Refuses a number that lies beyond the end, or not at a multiple of its size.
    fn check_number(&self, offset: u64, size: usize) -> Result<()> {
        check_range("the range of the cell", offset, size, self.length)?;
        if !offset.is_multiple_of(size as u64) {
            return Err(Error::Misuse {
                action: "reach a number in a cell",
                why: "its offset is not a multiple of its size",
            });
        }
        Ok(())
    }
}

macro_rules! numbers {
    ($($number:ty, $atomic:ty, $place:ident, $load:ident, $store:ident, $swap:ident, $add:ident, $exchange:ident;)*) => {
        /// Atomic numbers. Each fails with [`Error::TooLarge`] beyond the end, and with [`Error::Misuse`] when `offset`
        /// is not a multiple of the number's size.
        impl Cell {$(
            fn $place(&self, offset: u64) -> Result<&$atomic> {
                self.check_number(offset, size_of::<$number>())?;
                self.hold.family().region().view(self.start + offset)
            }

            /// The number at `offset`.
            pub fn $load(&self, offset: u64) -> Result<$number> {
                Ok(self.$place(offset)?.load(Ordering::SeqCst))
            }

            /// Stores a number at `offset`.
            pub fn $store(&self, offset: u64, value: $number) -> Result<()> {
                self.$place(offset)?.store(value, Ordering::SeqCst);
                Ok(())
            }

            /// Stores a number at `offset`, and tells the one before.
            pub fn $swap(&self, offset: u64, value: $number) -> Result<$number> {
                Ok(self.$place(offset)?.swap(value, Ordering::SeqCst))
            }

            /// Adds to the number at `offset`, counting round, and tells the one before.
            pub fn $add(&self, offset: u64, value: $number) -> Result<$number> {
                Ok(self.$place(offset)?.fetch_add(value, Ordering::SeqCst))
            }

            /// Stores `new` at `offset` if `expected` is there. Inside, `Ok` is what was expected and `Err` what was
            /// found instead.
            pub fn $exchange(
                &self,
                offset: u64,
                expected: $number,
                new: $number,
            ) -> Result<std::result::Result<$number, $number>> {
                let place = self.$place(offset)?;
                Ok(place.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst))
            }
        )*}
    };
}

numbers! {
    u8, AtomicU8, place_u8, load_u8, store_u8, swap_u8, fetch_add_u8, compare_exchange_u8;
    u16, AtomicU16, place_u16, load_u16, store_u16, swap_u16, fetch_add_u16, compare_exchange_u16;
    u32, AtomicU32, place_u32, load_u32, store_u32, swap_u32, fetch_add_u32, compare_exchange_u32;
    u64, AtomicU64, place_u64, load_u64, store_u64, swap_u64, fetch_add_u64, compare_exchange_u64;
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("len", &self.length).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_end_is_refused() {
        let family = crate::family().threads_max(8).create().unwrap();
        let cell = Cell::create(family, 10).unwrap();
        cell.write(2, &[7; 8]).unwrap();
        assert!(cell.write(3, &[9; 8]).is_err());
        assert!(cell.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(cell.load_u64(8).is_err());
        let mut bytes = [0; 10];
        cell.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
    }

    #[test]
    fn numbers_lie_at_multiples_of_their_size() {
        let family = crate::family().threads_max(8).create().unwrap();
        let cell = Cell::create(family, 64).unwrap();
        assert_eq!(cell.as_ptr() as usize % 64, 0);
        assert!(cell.store_u16(1, 1).is_err());
        assert!(cell.store_u32(2, 1).is_err());
        assert!(cell.store_u64(4, 1).is_err());
        cell.store_u64(8, 1).unwrap();
        assert_eq!(cell.compare_exchange_u64(8, 1, u64::MAX).unwrap(), Ok(1));
        assert_eq!(cell.fetch_add_u64(8, 2).unwrap(), u64::MAX);
        assert_eq!(cell.swap_u8(8, 3).unwrap(), 1);
    }

    #[test]
    fn a_cell_beyond_the_arena_is_an_error() {
        let family = crate::family()
            .threads_max(8)
            .memory_max(1 << 20)
            .create()
            .unwrap();
        for bytes in [1 << 21, u64::MAX - 100, u64::MAX] {
            assert!(matches!(
                Cell::create(family, bytes),
                Err(Error::Exhausted { .. })
            ));
        }
    }
}

//! Plain data that all processes read and write in place, without a lock.

use crate::codec::travels;
use crate::error::Result;
use crate::program::family;
use bytemuck::{Pod, Zeroable};
use procession_core::shared::Cell;
use procession_core::{self as core};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// One value that all processes of the family read and write, without a lock.
///
/// Types of 1, 2, 4 or 8 bytes are read and written as a whole, in an order that all agree on, like the atomics of the
/// standard library. Larger ones are copied: what another process writes meanwhile may be mixed in. For those there is
/// [`Mutex`](crate::Mutex).
///
/// ```
/// use procession::{Process, SharedValue};
///
/// fn count(counter: SharedValue<u64>) {
///     (0..1000).for_each(|_| _ = counter.fetch_add(1));
/// }
///
/// procession::init();
/// let counter = SharedValue::new(0)?;
/// let children = [Process::spawn(count, (counter.clone(),))?, Process::spawn(count, (counter.clone(),))?];
/// for child in children {
///     child.join()?;
/// }
/// assert_eq!(counter.load(), 2000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedValue<T> {
    slice: SharedSlice<T>,
}

travels!(
    SharedValue<T>,
    "a shared value",
    |value| value.slice.engine.handle(),
    |family, handle| {
        let slice = SharedSlice::over(Cell::attach(family, handle)?)?;
        Ok(SharedValue { slice })
    }
);

impl<T: Pod> SharedValue<T> {
    /// Creates one.
    ///
    /// ```
    /// # procession::init();
    /// let temperature = procession::SharedValue::new(20.5)?;
    /// assert_eq!(temperature.load(), 20.5);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new(value: T) -> Result<SharedValue<T>> {
        Ok(SharedValue {
            slice: SharedSlice::from_slice(&[value])?,
        })
    }

    /// The value.
    pub fn load(&self) -> T {
        self.slice.load(0)
    }

    /// Writes the value.
    ///
    /// ```
    /// # procession::init();
    /// let value = procession::SharedValue::new(1)?;
    /// value.store(2);
    /// assert_eq!(value.load(), 2);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn store(&self, value: T) {
        self.slice.store(0, value);
    }
}

impl<T: Word> SharedValue<T> {
    /// Writes the value, and gives the one before.
    ///
    /// ```
    /// # procession::init();
    /// let value = procession::SharedValue::new(1.5f32)?;
    /// assert_eq!(value.swap(2.5), 1.5);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn swap(&self, value: T) -> T {
        self.slice.swap(0, value)
    }

    /// Writes `new` if the value is `current`; fails with what it is otherwise.
    ///
    /// ```
    /// # procession::init();
    /// let value = procession::SharedValue::new(1)?;
    /// assert_eq!(value.compare_exchange(1, 2), Ok(1));
    /// assert_eq!(value.compare_exchange(1, 3), Err(2));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        self.slice.compare_exchange(0, current, new)
    }

    /// Changes the value by `change`, which is called again when another process was quicker; gives the one before.
    ///
    /// ```
    /// # procession::init();
    /// let value = procession::SharedValue::new(1.5)?;
    /// value.fetch_update(|value| value * 2.0);
    /// assert_eq!(value.load(), 3.0);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn fetch_update(&self, change: impl FnMut(T) -> T) -> T {
        self.slice.fetch_update(0, change)
    }
}

impl<T: Number> SharedValue<T> {
    /// Adds to the value, counting round; gives the one before.
    ///
    /// ```
    /// # procession::init();
    /// let value = procession::SharedValue::new(5)?;
    /// assert_eq!(value.fetch_add(-2), 5);
    /// assert_eq!(value.load(), 3);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn fetch_add(&self, value: T) -> T {
        self.slice.fetch_add(0, value)
    }
}

impl<T> Clone for SharedValue<T> {
    fn clone(&self) -> SharedValue<T> {
        SharedValue {
            slice: self.slice.clone(),
        }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for SharedValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedValue").field(&self.load()).finish()
    }
}

/// A fixed number of values that all processes of the family read and write, without a lock.
///
/// Single values are as in [`SharedValue`]; ranges are copied. Like a slice's, its methods panic beyond the end.
///
/// ```
/// use procession::{Process, SharedSlice};
///
/// fn fill(squares: SharedSlice<u32>, from: usize, to: usize) {
///     (from..to).for_each(|i| squares.store(i, (i * i) as u32));
/// }
///
/// procession::init();
/// let squares = SharedSlice::zeroed(10)?;
/// let children = [Process::spawn(fill, (squares.clone(), 0, 5))?, Process::spawn(fill, (squares.clone(), 5, 10))?];
/// for child in children {
///     child.join()?;
/// }
/// assert_eq!(squares.to_vec()[7..], [49, 64, 81]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedSlice<T> {
    engine: Cell,
    values: PhantomData<fn(T) -> T>,
}

travels!(
    SharedSlice<T>,
    "a shared slice",
    |slice| slice.engine.handle(),
    |family, handle| { SharedSlice::over(Cell::attach(family, handle)?) }
);

/// What the engine says cannot happen: every index was compared with the length.
const INSIDE: &str = "inside the cell, at a multiple of its size";

impl<T> SharedSlice<T> {
    const SIZE: usize = {
        assert!(size_of::<T>() > 0, "values without bytes need no sharing");
        size_of::<T>()
    };

    fn over(engine: Cell) -> core::Result<SharedSlice<T>> {
        if !engine.len().is_multiple_of(Self::SIZE as u64) {
            return Err(core::Error::Malformed {
                what: "shared slice",
                why: "its values are of another type",
            });
        }
        Ok(SharedSlice {
            engine,
            values: PhantomData,
        })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.engine.len() as usize / Self::SIZE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.engine.len() == 0
    }

    #[track_caller]
    fn offset(&self, index: usize) -> u64 {
        let length = self.len();
        assert!(
            index < length,
            "index {index} is beyond the end of a shared slice of {length}"
        );
        (index * Self::SIZE) as u64
    }

    #[track_caller]
    fn offset_of_range(&self, start: usize, length: usize) -> u64 {
        let whole = self.len();
        let inside = start.checked_add(length).is_some_and(|end| end <= whole);
        assert!(
            inside,
            "{length} values from {start} on are beyond the end of a shared slice of {whole}"
        );
        (start * Self::SIZE) as u64
    }
}

impl<T: Pod> SharedSlice<T> {
    /// Creates one of so many zeros.
    ///
    /// ```
    /// # procession::init();
    /// let slice = procession::SharedSlice::<f64>::zeroed(3)?;
    /// assert_eq!(slice.to_vec(), [0.0; 3]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn zeroed(length: usize) -> Result<SharedSlice<T>> {
        let bytes = (length as u64).saturating_mul(Self::SIZE as u64);
        Ok(SharedSlice::over(Cell::create(family()?, bytes)?)?)
    }

    /// Creates one with a copy of these values.
    ///
    /// ```
    /// # procession::init();
    /// let slice = procession::SharedSlice::from_slice(&[1, 2, 3])?;
    /// assert_eq!((slice.len(), slice.load(2)), (3, 3));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn from_slice(values: &[T]) -> Result<SharedSlice<T>> {
        let slice = SharedSlice::zeroed(values.len())?;
        slice.write(0, values);
        Ok(slice)
    }

    /// The value at `index`.
    #[track_caller]
    pub fn load(&self, index: usize) -> T {
        let offset = self.offset(index);
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        let engine = &self.engine;
        match bytes.len() {
            1 => bytes.copy_from_slice(&engine.load_u8(offset).expect(INSIDE).to_ne_bytes()),
            2 => bytes.copy_from_slice(&engine.load_u16(offset).expect(INSIDE).to_ne_bytes()),
            4 => bytes.copy_from_slice(&engine.load_u32(offset).expect(INSIDE).to_ne_bytes()),
            8 => bytes.copy_from_slice(&engine.load_u64(offset).expect(INSIDE).to_ne_bytes()),
            _ => engine.read(offset, bytes).expect(INSIDE),
        }
        value
    }

    /// Writes the value at `index`.
    ///
    /// ```
    /// # procession::init();
    /// let slice = procession::SharedSlice::zeroed(2)?;
    /// slice.store(1, [1u8, 2, 3]);
    /// assert_eq!(slice.load(1), [1, 2, 3]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    #[track_caller]
    pub fn store(&self, index: usize, value: T) {
        let offset = self.offset(index);
        let bytes = bytemuck::bytes_of(&value);
        let engine = &self.engine;
        let stored = match *bytes {
            [byte] => engine.store_u8(offset, byte),
            [a, b] => engine.store_u16(offset, u16::from_ne_bytes([a, b])),
            [a, b, c, d] => engine.store_u32(offset, u32::from_ne_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                engine.store_u64(offset, u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => engine.write(offset, bytes),
        };
        stored.expect(INSIDE);
    }

    /// Copies values out, from `start` on.
    ///
    /// ```
    /// # procession::init();
    /// let slice = procession::SharedSlice::from_slice(&[1, 2, 3, 4])?;
    /// let mut middle = [0; 2];
    /// slice.read(1, &mut middle);
    /// assert_eq!(middle, [2, 3]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    #[track_caller]
    pub fn read(&self, start: usize, values: &mut [T]) {
        let offset = self.offset_of_range(start, values.len());
        self.engine
            .read(offset, bytemuck::cast_slice_mut(values))
            .expect(INSIDE);
    }

    /// Copies values in, from `start` on. A process that is killed while it does leaves a part of them.
    ///
    /// ```
    /// # procession::init();
    /// let slice = procession::SharedSlice::zeroed(4)?;
    /// slice.write(2, &[7, 8]);
    /// assert_eq!(slice.to_vec(), [0, 0, 7, 8]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    #[track_caller]
    pub fn write(&self, start: usize, values: &[T]) {
        let offset = self.offset_of_range(start, values.len());
        self.engine
            .write(offset, bytemuck::cast_slice(values))
            .expect(INSIDE);
    }

    /// Copies a range of them out.
    #[track_caller]
    pub fn range(&self, range: Range<usize>) -> Vec<T> {
        let mut values = vec![T::zeroed(); range.len()];
        self.read(range.start, &mut values);
        values
    }

    /// Copies all of them out.
    pub fn to_vec(&self) -> Vec<T> {
        self.range(0..self.len())
    }
}

impl<T: Word> SharedSlice<T> {
    /// Writes the value at `index`, and gives the one before.
    #[track_caller]
    pub fn swap(&self, index: usize, value: T) -> T {
        T::swap_in(&self.engine, self.offset(index), value)
    }

    /// Writes `new` at `index` if the value there is `current`; fails with what it is otherwise.
    #[track_caller]
    pub fn compare_exchange(&self, index: usize, current: T, new: T) -> Result<T, T> {
        T::compare_exchange_in(&self.engine, self.offset(index), current, new)
    }

    /// Changes the value at `index` by `change`, which is called again when another process was quicker; gives the one
    /// before.
    #[track_caller]
    pub fn fetch_update(&self, index: usize, mut change: impl FnMut(T) -> T) -> T {
        let mut current = self.load(index);
        loop {
            match self.compare_exchange(index, current, change(current)) {
                Ok(before) => return before,
                Err(found) => current = found,
            }
        }
    }
}

impl<T: Number> SharedSlice<T> {
    /// Adds to the value at `index`, counting round; gives the one before.
    ///
    /// ```
    /// # procession::init();
    /// let histogram = procession::SharedSlice::<u32>::zeroed(3)?;
    /// [0, 1, 1, 2, 1].into_iter().for_each(|bin| _ = histogram.fetch_add(bin, 1));
    /// assert_eq!(histogram.to_vec(), [1, 3, 1]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    #[track_caller]
    pub fn fetch_add(&self, index: usize, value: T) -> T {
        T::fetch_add_in(&self.engine, self.offset(index), value)
    }
}

impl<T> Clone for SharedSlice<T> {
    fn clone(&self) -> SharedSlice<T> {
        SharedSlice {
            engine: self.engine.clone(),
            values: PhantomData,
        }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for SharedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let mut list = f.debug_list();
        list.entries(self.range(0..self.len().min(SHOWN)));
        if self.len() > SHOWN {
            list.finish_non_exhaustive()
        } else {
            list.finish()
        }
    }
}

/// A number of 1, 2, 4 or 8 bytes, which the machine exchanges as a whole. This crate implements it for all there are.
pub trait Word: Pod + Zeroable + sealed::Word {}

/// A whole number of 1, 2, 4 or 8 bytes. This crate implements it for all there are.
pub trait Number: Word + sealed::Number {}

mod sealed {
    use procession_core::shared::Cell;

    pub trait Word: Sized {
        fn swap_in(cell: &Cell, offset: u64, value: Self) -> Self;
        fn compare_exchange_in(
            cell: &Cell,
            offset: u64,
            current: Self,
            new: Self,
        ) -> Result<Self, Self>;
    }

    pub trait Number: Sized {
        fn fetch_add_in(cell: &Cell, offset: u64, value: Self) -> Self;
    }
}

macro_rules! words {
    ($($word:ty, $bits:ty, $swap:ident, $exchange:ident;)*) => {$(
        impl Word for $word {}

        impl sealed::Word for $word {
            fn swap_in(cell: &Cell, offset: u64, value: $word) -> $word {
                bytemuck::cast(cell.$swap(offset, bytemuck::cast::<$word, $bits>(value)).expect(INSIDE))
            }

            fn compare_exchange_in(cell: &Cell, offset: u64, current: $word, new: $word) -> Result<$word, $word> {
                let (current, new): ($bits, $bits) = (bytemuck::cast(current), bytemuck::cast(new));
                let answer = cell.$exchange(offset, current, new).expect(INSIDE);
                answer.map(bytemuck::cast).map_err(bytemuck::cast)
            }
        }
    )*};
}

macro_rules! numbers {
    ($($number:ty, $bits:ty, $add:ident;)*) => {$(
        impl Number for $number {}

        impl sealed::Number for $number {
            fn fetch_add_in(cell: &Cell, offset: u64, value: $number) -> $number {
                bytemuck::cast(cell.$add(offset, bytemuck::cast::<$number, $bits>(value)).expect(INSIDE))
            }
        }
    )*};
}

words! {
    u8, u8, swap_u8, compare_exchange_u8;
    i8, u8, swap_u8, compare_exchange_u8;
    u16, u16, swap_u16, compare_exchange_u16;
    i16, u16, swap_u16, compare_exchange_u16;
    u32, u32, swap_u32, compare_exchange_u32;
    i32, u32, swap_u32, compare_exchange_u32;
    f32, u32, swap_u32, compare_exchange_u32;
    u64, u64, swap_u64, compare_exchange_u64;
    i64, u64, swap_u64, compare_exchange_u64;
    f64, u64, swap_u64, compare_exchange_u64;
    usize, u64, swap_u64, compare_exchange_u64;
    isize, u64, swap_u64, compare_exchange_u64;
}

numbers! {
    u8, u8, fetch_add_u8;
    i8, u8, fetch_add_u8;
    u16, u16, fetch_add_u16;
    i16, u16, fetch_add_u16;
    u32, u32, fetch_add_u32;
    i32, u32, fetch_add_u32;
    u64, u64, fetch_add_u64;
    i64, u64, fetch_add_u64;
    usize, u64, fetch_add_u64;
    isize, u64, fetch_add_u64;
}

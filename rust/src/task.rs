//! Functions that run in other processes: how they are named, found and called there.
#![allow(
    unsafe_code,
    reason = "makes a function of its address, and of nothing a value without contents"
)]

use crate::codec::{self, Encoded};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::panics::{self, Panic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::any::type_name;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A function that can run in another process, with the arguments `A`: a tuple of at most eight.
///
/// Functions are, and closures that capture nothing. What they take and return travels by serde, or is one of this
/// crate's own objects, such as a [`Queue`](crate::Queue). What a closure would capture is passed as an argument.
///
/// A function is named by its place in the program: the other process runs the same build of it, and says so if not.
///
/// ```
/// use procession::{Process, Task};
///
/// fn area(width: f64, height: f64) -> f64 {
///     width * height
/// }
///
/// fn run<F: Task<(f64, f64), Output = f64>>(task: F) -> f64 {
///     Process::spawn(task, (2.0, 3.0)).unwrap().join().unwrap()
/// }
///
/// procession::init();
/// assert_eq!(run(area), 6.0);
/// assert_eq!(run(|a: f64, b: f64| a + b), 5.0);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in another process with the arguments `{A}`",
    label = "not a task for these arguments",
    note = "a task is a function, or a closure that captures nothing",
    note = "its arguments are passed as a tuple; they and its result implement serde's `Serialize` and `DeserializeOwned`"
)]
pub trait Task<A>: Copy + 'static {
    /// What it returns.
    type Output: Serialize + DeserializeOwned;

    /// Calls it, here.
    fn call(self, arguments: A) -> Self::Output;
}

macro_rules! tasks {
    ($(($($a:ident)*))*) => {$(
        impl<Function, Output, $($a),*> Task<($($a,)*)> for Function
        where
            Function: Fn($($a),*) -> Output + Copy + 'static,
            Output: Serialize + DeserializeOwned,
        {
            type Output = Output;

            #[allow(non_snake_case, reason = "arguments have the names of their types")]
            fn call(self, ($($a,)*): ($($a,)*)) -> Output {
                self($($a),*)
            }
        }
    )*};
}

tasks! { () (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E G) (A B C D E G H) (A B C D E G H I) }

/// What a task is called with in another process; dropped as soon as the arguments are made of it.
pub(crate) type Arguments<'a> = Box<dyn AsRef<[u8]> + 'a>;

/// How a task is called in another process: with arguments, and what takes its report. What it returned lives until the
/// report was taken: there may be an object in it that nobody else holds.
pub(crate) type Entry = for<'a> fn(Arguments<'a>, &mut dyn FnMut(&Ran));

/// A task that ran, or was to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its [`Report`].
    pub(crate) report: Encoded,
    pub(crate) fate: Fate,
}

/// What a [`Report`] says, for who does not know the task's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Returned,
    Panicked,
    Refused,
}

/// What became of a task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report<R> {
    Returned(R),
    Panicked(Panic),
    /// It was not called, or what it returned cannot be sent.
    Refused(String),
}

/// An [`Entry`] by its place in the program, to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    offset: u64,
}

impl Call {
    /// Calls `task` with its arguments.
    pub(crate) fn once<F, A>(task: F) -> Result<Call>
    where
        F: Task<A>,
        A: DeserializeOwned,
    {
        let _ = task;
        Call::of::<F>(|bytes, take| match arguments(bytes) {
            Ok(arguments) => report(panics::catch(|| conjure::<F>().call(arguments)), take),
            Err(refused) => take(&refused),
        })
    }

    /// Calls `task` with each of a list; reports a list, in which each has its own fate.
    pub(crate) fn each<F, A>(task: F) -> Result<Call>
    where
        F: Task<(A,)>,
        A: DeserializeOwned,
    {
        let _ = task;
        Call::of::<F>(|bytes, take| match arguments::<Vec<A>>(bytes) {
            Ok(items) => {
                let reports = items.into_iter().map(|item| {
                    match panics::catch(|| conjure::<F>().call((item,))) {
                        Ok(output) => Report::Returned(output),
                        Err(panic) => Report::Panicked(panic),
                    }
                });
                report(Ok(reports.collect::<Vec<_>>()), take);
            }
            Err(refused) => take(&refused),
        })
    }

    fn of<F>(entry: Entry) -> Result<Call> {
        const {
            assert!(
                size_of::<F>() == 0,
                "a task captures nothing: pass what it needs as arguments"
            );
        }
        let offset = Image::own().offset_of(entry as usize);
        offset
            .map(|offset| Call { offset })
            .ok_or(Error::ForeignFunction {
                function: type_name::<F>(),
            })
    }

    /// The function of that place in this program, which was found to be the same build.
    pub(crate) fn entry(self) -> Option<Entry> {
        let address = Image::own().address_of(self.offset)?;
        // SAFETY: made by `Call::of` of an `Entry`, in the same build: there it lies, and that is its type.
        Some(unsafe { std::mem::transmute::<usize, Entry>(address) })
    }
}

/// The task itself, of which there is nothing but its type.
pub(crate) fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0) };
    // SAFETY: it has no bytes, it can be copied, and the process that named it had one.
    unsafe { NonNull::<F>::dangling().read() }
}

/// Makes the arguments, and lets go of the message they came in.
fn arguments<A: DeserializeOwned>(bytes: Arguments<'_>) -> Result<A, Ran> {
    codec::decode((*bytes).as_ref()).map_err(|error| refuse(&error))
}

/// Hands out the report on a task that ran.
pub(crate) fn report<R: Serialize>(result: Result<R, Panic>, take: &mut dyn FnMut(&Ran)) {
    let (report, fate) = match result {
        Ok(output) => (Report::Returned(output), Fate::Returned),
        Err(panic) => (Report::Panicked(panic), Fate::Panicked),
    };
    match codec::encode(&report) {
        Ok(encoded) => take(&Ran {
            report: encoded,
            fate,
        }),
        Err(error) => take(&refuse(&error)),
    }
}

/// The report on a task that could not be called, or whose result cannot be sent.
pub(crate) fn refuse(error: &dyn std::error::Error) -> Ran {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        cause = error.source();
    }
    refuse_because(why)
}

/// [`refuse`], in words.
pub(crate) fn refuse_because(why: String) -> Ran {
    Ran {
        report: codec::encode(&Report::<()>::Refused(why)).expect("text can be encoded"),
        fate: Fate::Refused,
    }
}

/// The last word of a task's name, for people: `count` of `shop::stock::count`, `count::{{closure}}` of one in it.
pub(crate) fn short_name(name: &'static str) -> &'static str {
    let path = name.split('<').next().unwrap_or(name);
    let mut start = path.len();
    for word in path.rsplit("::") {
        start -= word.len();
        if !word.starts_with('{') {
            break;
        }
        start = start.saturating_sub(2);
    }
    &path[start..]
}

/// A function that was registered by [`#[procession::task]`](macro@crate::task).
///
/// ```
/// #[procession::task]
/// fn double(n: i64) -> i64 {
///     2 * n
/// }
///
/// let double = procession::tasks().find(|task| task.name().ends_with("::double")).unwrap();
/// assert_eq!(double.signature(), "fn(i64) -> i64");
/// ```
#[derive(Clone, Copy)]
pub struct Registered {
    name: &'static str,
    signature: fn() -> &'static str,
}

inventory::collect!(Registered);

impl Registered {
    /// Its name, with the modules that it is in.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The types that it takes and returns.
    pub fn signature(&self) -> &'static str {
        (self.signature)()
    }

    /// A number for its name and signature, the same in every build of the program that has both as they are.
    pub fn fingerprint(&self) -> u64 {
        let bytes = self.name.bytes().chain([0]).chain(self.signature().bytes());
        // FNV-1a: the same on every machine, and for ever.
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered")
            .field("name", &self.name)
            .field("signature", &self.signature())
            .finish()
    }
}

/// The functions that this program registered.
///
/// ```
/// #[procession::task]
/// fn noted() {}
///
/// assert!(procession::tasks().any(|task| task.name().ends_with("::noted")));
/// ```
pub fn tasks() -> impl Iterator<Item = &'static Registered> {
    inventory::iter::<Registered>.into_iter()
}

/// For `#[procession::task]`.
#[doc(hidden)]
pub const fn registered(name: &'static str, signature: fn() -> &'static str) -> Registered {
    Registered { name, signature }
}

/// For `#[procession::task]`: complains about a function that is no task, where it is written.
#[doc(hidden)]
pub fn assert_task<A: Serialize + DeserializeOwned, F: Task<A>>(_: F) {
    let _ = PhantomData::<A>;
}

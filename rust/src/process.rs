//! Processes: starting them, and learning what became of them.

use crate::child::{self, Greeting, Order};
use crate::codec;
use crate::error::{Error, Result};
use crate::panics::{self, Panic};
use crate::program;
use crate::task::{Call, Report, Task, report, short_name};
use crate::waiting::{in_time, through_signals};
use procession_core::process::{self as engine, Child, Ending, Exit, Method, Start};
use procession_core::{self as core, Deadline, Queue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A function that runs in another process, and will return an `R`.
///
/// Dropping it changes nothing for the process, which goes on; at the end of `main`, it is waited for.
///
/// ```
/// use procession::Process;
///
/// fn greet(name: String) -> String {
///     format!("Hello, {name}, from {}", std::process::id())
/// }
///
/// procession::init();
/// let child = Process::spawn(greet, ("Ada".to_string(),))?;
/// let pid = child.pid();
/// assert_eq!(child.join()?, format!("Hello, Ada, from {pid}"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Process<R> {
    child: Child,
    /// Where its report comes in; one.
    reply: Queue,
    task: &'static str,
    joined: bool,
    result: PhantomData<fn() -> R>,
}

impl<R> Process<R> {
    /// Starts a process that calls `task` with the arguments, and begins as this program does.
    ///
    /// See [`Task`] for what can be called, and [`Builder`] for processes that are not as usual.
    ///
    /// ```
    /// # procession::init();
    /// let child = procession::Process::spawn(|a: u32, b: u32| a.pow(b), (2, 10))?;
    /// assert_eq!(child.join()?, 1024);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<F, A>(task: F, arguments: A) -> Result<Process<R>>
    where
        F: Task<A, Output = R>,
        A: Serialize + DeserializeOwned,
    {
        Builder::new().spawn(task, arguments)
    }

    /// Goes on in a copy of this process: the closure may capture anything.
    ///
    /// Fails if this process has more than one thread, for which a copy would be half of what it was; see
    /// [`Builder::fork_unchecked`].
    ///
    /// ```
    /// # procession::init();
    /// let text = String::from("captured, not sent");
    /// match procession::Process::fork(|| text.len()) {
    ///     Ok(child) => assert_eq!(child.join()?, 18),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fork(work: impl FnOnce() -> R) -> Result<Process<R>>
    where
        R: Serialize,
    {
        Builder::new().fork(work)
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its place in the family, which no other living process has.
    pub fn id(&self) -> u32 {
        self.child.slot()
    }

    /// Its name: what the builder said, or the function's.
    pub fn name(&self) -> &str {
        self.child.name()
    }

    /// Whether it runs.
    ///
    /// ```
    /// # procession::init();
    /// let child = procession::Process::spawn(|| std::thread::sleep(std::time::Duration::from_secs(60)), ())?;
    /// assert!(child.is_alive());
    /// child.kill()?;
    /// assert!(child.join().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_alive(&self) -> bool {
        matches!(self.exit(), Ok(None))
    }

    /// How it ended; `None` while it runs.
    ///
    /// ```
    /// # procession::init();
    /// let child = procession::Process::spawn(|| (), ())?;
    /// while child.exit()?.is_none() {}
    /// assert!(child.exit()?.unwrap().is_success());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn exit(&self) -> Result<Option<Exit>> {
        Ok(self.child.poll()?)
    }

    /// Asks it to end, by SIGTERM. False if it had ended.
    pub fn terminate(&self) -> Result<bool> {
        Ok(self.child.terminate()?)
    }

    /// Ends it, by SIGKILL. False if it had ended.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JoinError, Process};
    ///
    /// let child = Process::spawn(|| loop { std::thread::park() }, ())?;
    /// let child: Process<()> = child;
    /// child.kill()?;
    /// let Err(JoinError::Died(death)) = child.join() else { unreachable!() };
    /// assert_eq!(death.signal(), Some(9));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn kill(&self) -> Result<bool> {
        Ok(self.child.kill()?)
    }

    /// A descriptor that is readable once the process ended, for `poll` and what is built on it.
    pub fn sentinel(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.child.sentinel()?)
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits until the process ended, and gives what its function returned.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JoinError, Process};
    ///
    /// let fine = Process::spawn(|| vec![1, 2], ())?;
    /// let not_so_fine = Process::spawn(|| -> u8 { std::process::exit(3) }, ())?;
    /// assert_eq!(fine.join()?, [1, 2]);
    /// match not_so_fine.join() {
    ///     Err(JoinError::Died(death)) => assert_eq!(death.code(), Some(3)),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(mut self) -> Result<R, JoinError> {
        loop {
            if let Some(result) = self.join_until(Deadline::NEVER)? {
                return Ok(result);
            }
        }
    }

    /// What its function returned, if the process has ended; `None` if it runs.
    ///
    /// After that, or an error, there is nothing more to join.
    ///
    /// ```
    /// # procession::init();
    /// let mut child = procession::Process::spawn(|| 7, ())?;
    /// let seven = loop {
    ///     if let Some(result) = child.try_join()? {
    ///         break result;
    ///     }
    /// };
    /// assert_eq!(seven, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_join(&mut self) -> Result<Option<R>, JoinError> {
        self.join_until(Deadline::PASSED)
    }

    /// What its function returned, if the process ends in time; `None` if it still runs.
    ///
    /// ```
    /// # procession::init();
    /// use std::time::Duration;
    ///
    /// let mut child = procession::Process::spawn(|| std::thread::sleep(Duration::from_secs(60)), ())?;
    /// assert!(child.join_timeout(Duration::from_millis(5))?.is_none());
    /// child.kill()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<Option<R>, JoinError> {
        self.join_until(Deadline::after(timeout))
    }

    fn join_until(&mut self, deadline: Deadline) -> Result<Option<R>, JoinError> {
        if self.joined {
            let misuse = core::Error::Misuse {
                action: "join a process",
                why: "it was joined already",
            };
            return Err(JoinError::Failed(misuse.into()));
        }
        let ended = in_time(through_signals(|| self.child.join(deadline)));
        let Some(exit) = ended.map_err(Error::from)? else {
            return Ok(None);
        };
        self.joined = true;
        let reply = in_time(through_signals(|| self.reply.get(Deadline::PASSED)));
        let Some(message) = reply.map_err(Error::from)? else {
            return Err(JoinError::Died(Death {
                pid: self.pid(),
                name: self.name().to_owned(),
                exit,
            }));
        };
        match codec::decode_message(&message)? {
            Report::Returned(result) => Ok(Some(result)),
            Report::Panicked(panic) => Err(JoinError::Panicked(panic)),
            Report::Refused(why) => Err(JoinError::Refused { why }),
        }
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Process");
        shown
            .field("pid", &self.pid())
            .field("name", &self.name())
            .field("task", &self.task);
        match self.exit() {
            Ok(Some(exit)) => shown.field("ended", &exit.ending),
            Ok(None) => shown.field("alive", &true),
            Err(_) => &mut shown,
        };
        shown.finish_non_exhaustive()
    }
}

/// Why there is no result of a process.
///
/// ```
/// # procession::init();
/// use procession::{JoinError, Process};
///
/// let child = Process::spawn(|| -> u32 { "seven".parse().unwrap() }, ())?;
/// match child.join().unwrap_err() {
///     JoinError::Panicked(panic) => println!("{panic}"),
///     JoinError::Died(death) => println!("{death}"),
///     other => println!("{other}"),
/// }
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Its function panicked.
    #[error("the task {0}")]
    Panicked(Panic),

    /// It ended before its function returned: killed, crashed, or by `exit`.
    #[error("{0}")]
    Died(Death),

    /// Its function was not called, because it is another build of the program or could not read the arguments; or what
    /// the function returned could not be sent.
    #[error("the process refused its task: {why}")]
    Refused {
        /// What it says.
        why: String,
    },

    /// The wait failed, or what came cannot be read.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A process that ended before its function returned.
///
/// ```
/// # procession::init();
/// use procession::{JoinError, Process};
///
/// let child = procession::Builder::new().name("frail").spawn(|| std::process::abort(), ())?;
/// let child: Process<()> = child;
/// let Err(JoinError::Died(death)) = child.join() else { unreachable!() };
/// assert_eq!((death.signal(), death.code()), (Some(6), None));
/// assert!(death.to_string().starts_with("process `frail` (pid "));
/// assert!(death.to_string().ends_with(" was killed by signal 6 (SIGABRT)"));
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// All that is known of its end.
    pub exit: Exit,
}

impl Death {
    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        match self.exit.ending {
            Ending::Signal(signal) => Some(signal),
            Ending::Code(_) | Ending::Unknown => None,
        }
    }

    /// The code that it exited with.
    pub fn code(&self) -> Option<i32> {
        match self.exit.ending {
            Ending::Code(code) => Some(code),
            Ending::Signal(_) | Ending::Unknown => None,
        }
    }

    /// Whether the system killed it for want of memory, as far as can be seen.
    pub fn is_out_of_memory(&self) -> bool {
        self.exit.out_of_memory == Some(true)
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process `{}` (pid {}) {}",
            self.name,
            self.pid,
            Told(&self.exit)
        )
    }
}

/// An end, in words.
pub(crate) struct Told<'a>(pub(crate) &'a Exit);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exit = self.0;
        match exit.ending {
            Ending::Code(code) if !exit.began => {
                write!(
                    f,
                    "exited with code {code} before it called `procession::init()`"
                )
            }
            Ending::Code(code) => write!(f, "exited with code {code} before its task returned"),
            Ending::Signal(signal) => {
                write!(f, "was killed by signal {signal}")?;
                if let Some(name) = signal_name(signal) {
                    write!(f, " ({name})")?;
                }
                match exit.out_of_memory {
                    Some(true) => f.write_str(" by the out-of-memory killer"),
                    Some(false) | None => Ok(()),
                }
            }
            Ending::Unknown => f.write_str("ended, nobody knows how"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    let found = names.iter().find(|(number, _)| *number == signal);
    found.map(|(_, name)| *name)
}

/// How a process comes to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program runs from its beginning.
    #[default]
    Spawn,
    /// A copy of a process that ran the program from its beginning and got ready once, for all: quicker.
    Zygote,
}

/// One of a process's standard streams.
///
/// ```
/// # procession::init();
/// use procession::{Builder, Stdio};
/// use std::io::Read;
///
/// let (mut reader, writer) = std::io::pipe()?;
/// let child = Builder::new().stdout(writer).stderr(Stdio::null()).spawn(|| println!("hello"), ())?;
/// child.join()?;
/// let mut said = String::new();
/// reader.read_to_string(&mut said)?;
/// assert_eq!(said, "hello\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Stdio(Stream);

#[derive(Debug, Default)]
enum Stream {
    #[default]
    Inherit,
    Null,
    Fd(OwnedFd),
}

impl Stdio {
    /// The parent's.
    pub fn inherit() -> Stdio {
        Stdio(Stream::Inherit)
    }

    /// Nothing to read; what is written is swallowed.
    pub fn null() -> Stdio {
        Stdio(Stream::Null)
    }

    fn as_engine(&self) -> engine::Stdio<'_> {
        match &self.0 {
            Stream::Inherit => engine::Stdio::Inherit,
            Stream::Null => engine::Stdio::Null,
            Stream::Fd(fd) => engine::Stdio::Fd(fd.as_fd()),
        }
    }
}

macro_rules! streams {
    ($($from:ty)*) => {$(
        impl From<$from> for Stdio {
            fn from(stream: $from) -> Stdio {
                Stdio(Stream::Fd(stream.into()))
            }
        }
    )*};
}

streams! { OwnedFd File PipeReader PipeWriter }

/// A process that is not as usual.
///
/// ```
/// # procession::init();
/// use procession::{Builder, StartMethod};
///
/// let child = Builder::new()
///     .name("reader")
///     .method(StartMethod::Spawn)
///     .env("LANG", "C")
///     .current_dir("/")
///     .spawn(|| (std::env::var("LANG").unwrap(), std::env::current_dir().unwrap()), ())?;
/// assert_eq!(child.name(), "reader");
/// assert_eq!(child.join()?, ("C".to_string(), "/".into()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until `spawn`"]
pub struct Builder {
    name: Option<String>,
    method: StartMethod,
    daemon: bool,
    detached: bool,
    env: Vec<(OsString, Option<OsString>)>,
    env_clear: bool,
    directory: Option<PathBuf>,
    stdio: [Stdio; 3],
    program: Option<PathBuf>,
}

impl Builder {
    /// A process as usual.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Its name, for people; the function's if none is set. The first 47 bytes of it are kept.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// How it comes to be.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{Builder, StartMethod};
    ///
    /// let child = Builder::new().method(StartMethod::Zygote).spawn(|| 7, ())?;
    /// assert_eq!(child.join()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn method(mut self, method: StartMethod) -> Builder {
        self.method = method;
        self
    }

    /// Whether it is ended with this program, rather than waited for.
    ///
    /// ```
    /// # procession::init();
    /// let server = || loop { std::thread::park() };
    /// let child: procession::Process<()> = procession::Builder::new().daemon(true).spawn(server, ())?;
    /// procession::finish()?;
    /// assert!(!child.is_alive());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn daemon(mut self, daemon: bool) -> Builder {
        self.daemon = daemon;
        self
    }

    /// Whether it outlives this process. Others end when their parent does, also when that is killed.
    pub fn detached(mut self, detached: bool) -> Builder {
        self.detached = detached;
        self
    }

    /// Sets a variable in its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Builder {
        self.env
            .push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Removes a variable from its environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Builder {
        self.env.push((name.as_ref().into(), None));
        self
    }

    /// Begins its environment with nothing instead of this process's.
    pub fn env_clear(mut self) -> Builder {
        self.env_clear = true;
        self.env.clear();
        self
    }

    /// Where it starts.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Builder {
        self.directory = Some(directory.as_ref().into());
        self
    }

    /// Its standard input.
    pub fn stdin(mut self, stream: impl Into<Stdio>) -> Builder {
        self.stdio[0] = stream.into();
        self
    }

    /// Its standard output.
    pub fn stdout(mut self, stream: impl Into<Stdio>) -> Builder {
        self.stdio[1] = stream.into();
        self
    }

    /// Its standard error.
    pub fn stderr(mut self, stream: impl Into<Stdio>) -> Builder {
        self.stdio[2] = stream.into();
        self
    }

    /// Another file of the same build, instead of the one that runs.
    #[doc(hidden)]
    pub fn program(mut self, program: impl AsRef<Path>) -> Builder {
        self.program = Some(program.as_ref().into());
        self
    }

    /// Starts the process: it calls `task` with the arguments.
    pub fn spawn<F, A>(&self, task: F, arguments: A) -> Result<Process<F::Output>>
    where
        F: Task<A>,
        A: Serialize + DeserializeOwned,
    {
        let reply = Queue::create(program::family()?, &core::Options::default())?;
        let name = type_name::<F>();
        let child = self.start(Call::once(task)?, &arguments, Some(&reply), name)?;
        Ok(Process::of(child, reply, name))
    }

    /// Starts a process that makes a call, and reports on `reply`.
    pub(crate) fn start<A: Serialize>(
        &self,
        call: Call,
        arguments: &A,
        reply: Option<&Queue>,
        task: &'static str,
    ) -> Result<Child> {
        program::check_initialized()?;
        let family = program::family()?;
        let method = match self.method {
            StartMethod::Spawn => Method::Spawn,
            StartMethod::Zygote => Method::Zygote,
        };
        // A test harness writes where we do: it gets another place for that, and the child moves back.
        let swaps_stdout = program::is_test() && matches!(self.stdio[1].0, Stream::Inherit);
        let stdout = std::io::stdout();
        let (fds, stdio) = if swaps_stdout {
            let [stdin, _, stderr] = self.stdio.each_ref().map(Stdio::as_engine);
            (vec![stdout.as_fd()], [stdin, engine::Stdio::Null, stderr])
        } else {
            (Vec::new(), self.stdio.each_ref().map(Stdio::as_engine))
        };
        let order = Order { call, swaps_stdout };
        let encoded = codec::encode(&Greeting::new(reply))?;
        let encoded = codec::encode_after(encoded, &order)?;
        let encoded = codec::encode_after(encoded, arguments)?;
        let start = Start {
            name: self.name_or(task),
            daemon: self.daemon,
            detached: self.detached,
            env: self.env.clone(),
            env_clear: self.env_clear,
            directory: self.directory.clone(),
            stdio,
            program: self.program.clone(),
            args: program::arguments_for_children(),
            payload: &[encoded.bytes()],
            handles: encoded.handles(),
            fds: &fds,
            ..Start::new(method)
        };
        Ok(engine::start(family, &start)?)
    }

    /// Goes on in a copy of this process, as [`Process::fork`] does. Of what is set, the environment and the start method
    /// have no effect.
    pub fn fork<R: Serialize>(&self, work: impl FnOnce() -> R) -> Result<Process<R>> {
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if threads != 1 {
            return Err(Error::Engine(core::Error::Misuse {
                action: "fork this process",
                why: "it has more than one thread",
            }));
        }
        #[expect(unsafe_code, reason = "its condition was checked")]
        // SAFETY: there is no other thread that could hold a lock.
        unsafe {
            self.fork_unchecked(work)
        }
    }

    /// [`Builder::fork`], whatever threads there are.
    ///
    /// # Safety
    ///
    /// Only the calling thread goes on in the copy. What other threads had locked just then stays locked there for ever:
    /// `work` may use only what none of them locks. This crate's own objects are fine, and so is the allocator of glibc.
    #[expect(unsafe_code, reason = "forks a process that may have threads")]
    pub unsafe fn fork_unchecked<R: Serialize>(
        &self,
        work: impl FnOnce() -> R,
    ) -> Result<Process<R>> {
        let family = program::family()?;
        let reply = Queue::create(family, &core::Options::default())?;
        let task = type_name::<R>();
        let start = Start {
            name: self.name_or("fork"),
            daemon: self.daemon,
            detached: self.detached,
            directory: self.directory.clone(),
            stdio: self.stdio.each_ref().map(Stdio::as_engine),
            ..Start::new(Method::Fork)
        };
        // Or both would write what is waiting to be written.
        let _ = std::io::stdout().flush();
        let in_child = || {
            let mut code = 0;
            report(panics::catch(work), &mut |ran| {
                code = child::answer(Some(&reply), ran);
            });
            let _ = program::finish();
            let _ = std::io::stdout().flush();
            code
        };
        // SAFETY: by the caller.
        let child = unsafe { engine::fork(family, &start, in_child) }?;
        Ok(Process::of(child, reply, task))
    }

    fn name_or(&self, task: &'static str) -> &str {
        match &self.name {
            Some(name) => name,
            None => short_name(task),
        }
    }
}

impl<R> Process<R> {
    fn of(child: Child, reply: Queue, task: &'static str) -> Process<R> {
        Process {
            child,
            reply,
            task,
            joined: false,
            result: PhantomData,
        }
    }
}

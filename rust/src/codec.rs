//! Values to bytes and back. Nothing else in this crate knows which format they travel in.
//!
//! A shared object travels as its handle, which says nothing of its own about keeping the object alive: while a value is
//! encoded, the handles in it are gathered beside the bytes, and the message lists them for the engine.

use crate::error::{Error, Result};
use crate::program;
use procession_core::connection::Ticket;
use procession_core::{self as core, Family, Handle, Message, Outgoing, Tag};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::any::type_name;
use std::cell::{Cell, RefCell};
use std::error::Error as StdError;

type Cause = Box<dyn StdError + Send + Sync>;

/// What the bytes are, for those who read them without us.
const TAG: Tag = Tag::POSTCARD;

/// A buffer larger than this is not kept for the next value.
const KEPT_MAX: usize = 64 << 10;

/// What is gathered beside the bytes while a value is encoded.
#[derive(Default)]
struct Luggage {
    handles: Vec<Handle>,
    /// What lies in the family's locker until the message is sent, which then keeps it there.
    tickets: Vec<Ticket>,
    /// What went wrong, in more words than the format's own error can carry.
    cause: Option<Cause>,
}

thread_local! {
    static PACKING: RefCell<Option<Luggage>> = const { RefCell::new(None) };
    static UNPACKING: RefCell<Option<Option<Cause>>> = const { RefCell::new(None) };
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A value as bytes, with the handles in it. Those live only as long as the value does, or a message that lists them.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    handles: Vec<Handle>,
    tickets: Vec<Ticket>,
}

impl Encoded {
    /// Hands it out as a message.
    pub(crate) fn send<R>(&self, send: impl FnOnce(Outgoing<'_>) -> R) -> R {
        send(self.as_message(&[self.bytes()]))
    }

    /// It as a message, of which `parts` are its own bytes.
    pub(crate) fn as_message<'a>(&'a self, parts: &'a [&'a [u8]]) -> Outgoing<'a> {
        Outgoing {
            tag: TAG,
            parts,
            handles: &self.handles,
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The handles.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }
}

/// Encodes a value that is to be kept for a while.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Encoded> {
    encode_after(Encoded::default(), value)
}

/// Encodes a value behind another.
pub(crate) fn encode_after<T: Serialize + ?Sized>(first: Encoded, value: &T) -> Result<Encoded> {
    let luggage = Luggage {
        handles: first.handles,
        tickets: first.tickets,
        cause: None,
    };
    // Values may encode others while they are encoded: what was begun before is put back.
    let before = PACKING.replace(Some(luggage));
    let answer = postcard::to_extend(value, first.bytes);
    let luggage = PACKING.replace(before).unwrap_or_default();
    match answer {
        Ok(bytes) => Ok(Encoded {
            bytes,
            handles: luggage.handles,
            tickets: luggage.tickets,
        }),
        Err(error) => Err(Error::Encode {
            type_name: type_name::<T>(),
            source: luggage.cause.unwrap_or_else(|| error.into()),
        }),
    }
}

/// Encodes a value and sends it at once, through a buffer that the thread keeps.
pub(crate) fn send<T: Serialize + ?Sized, R>(
    value: &T,
    send: impl FnOnce(Outgoing<'_>) -> core::Result<R>,
) -> Result<R> {
    let mut bytes = BUFFER.take();
    bytes.clear();
    let empty = Encoded {
        bytes,
        ..Encoded::default()
    };
    let encoded = encode_after(empty, value)?;
    let answer = encoded.send(send);
    if encoded.bytes.capacity() <= KEPT_MAX {
        BUFFER.set(encoded.bytes);
    }
    Ok(answer?)
}

/// Decodes the value of a message. What is shared in it is attached before the message, which kept it alive, goes.
pub(crate) fn decode_message<T: DeserializeOwned>(message: &Message) -> Result<T> {
    decode_tagged(message.tag(), message.bytes())
}

/// Decodes a value of which these are all the bytes, if they are what we write.
pub(crate) fn decode_tagged<T: DeserializeOwned>(tag: Tag, bytes: &[u8]) -> Result<T> {
    if tag == TAG {
        return decode(bytes);
    }
    Err(Error::Decode {
        type_name: type_name::<T>(),
        source: format!("the message is {}, not postcard", name_of(tag)).into(),
    })
}

/// Decodes a value of which these are all the bytes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let (value, rest) = decode_first(bytes)?;
    if rest.is_empty() {
        return Ok(value);
    }
    Err(Error::Decode {
        type_name: type_name::<T>(),
        source: format!("{} bytes more than it has", rest.len()).into(),
    })
}

/// Decodes a value from the first of these bytes, and gives the others.
pub(crate) fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8])> {
    let before = UNPACKING.replace(Some(None));
    let answer = postcard::take_from_bytes(bytes);
    let cause = UNPACKING.replace(before).flatten();
    answer.map_err(|error| Error::Decode {
        type_name: type_name::<T>(),
        source: cause.unwrap_or_else(|| error.into()),
    })
}

fn name_of(tag: Tag) -> String {
    match tag {
        Tag::RAW => "raw bytes".into(),
        Tag::POSTCARD => "postcard".into(),
        Tag::PICKLE => "a Python pickle".into(),
        Tag::JSON => "JSON".into(),
        Tag(other) => format!("of kind {other}"),
    }
}

/// How a shared object is serialised: as its handle, noted for the message.
pub(crate) fn serialize_handle<S: Serializer>(
    what: &str,
    handle: Handle,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let noted = PACKING.with_borrow_mut(|packing| {
        let luggage = packing.as_mut()?;
        luggage.handles.push(handle);
        Some(())
    });
    match noted {
        Some(()) => handle.to_bits().serialize(serializer),
        None => Err(S::Error::custom(stays_home(what))),
    }
}

/// How an end of a pipe is serialised: as the handle of a ticket for it.
pub(crate) fn serialize_ticket<S: Serializer>(
    what: &str,
    deposit: impl FnOnce() -> core::Result<Ticket>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if PACKING.with_borrow(Option::is_none) {
        return Err(S::Error::custom(stays_home(what)));
    }
    match deposit() {
        Ok(ticket) => {
            let handle = ticket.handle();
            PACKING.with_borrow_mut(|packing| {
                packing.get_or_insert_default().tickets.push(ticket);
            });
            serialize_handle(what, handle, serializer)
        }
        Err(error) => {
            let text = error.to_string();
            PACKING.with_borrow_mut(|packing| {
                packing.get_or_insert_default().cause = Some(error.into());
            });
            Err(S::Error::custom(text))
        }
    }
}

/// How a shared object is deserialised: by attaching to its handle.
pub(crate) fn deserialize_handle<'de, D: Deserializer<'de>, T>(
    what: &str,
    attach: impl FnOnce(&'static Family, Handle) -> core::Result<T>,
    deserializer: D,
) -> Result<T, D::Error> {
    if UNPACKING.with_borrow(Option::is_none) {
        return Err(D::Error::custom(stays_home(what)));
    }
    let handle = Handle::from_bits(u64::deserialize(deserializer)?);
    let attached = program::family().and_then(|family| Ok(attach(family, handle)?));
    attached.map_err(|error| {
        let text = error.to_string();
        UNPACKING.with_borrow_mut(|cause| *cause = Some(Some(error.into())));
        D::Error::custom(text)
    })
}

/// A handle to be sent by itself, and attached to by whoever knows of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named(pub(crate) Handle);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_handle("a handle", self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Named, D::Error> {
        u64::deserialize(deserializer).map(|bits| Named(Handle::from_bits(bits)))
    }
}

fn stays_home(what: &str) -> String {
    format!("{what} can be sent only through procession: it lives in its family's memory")
}

/// `Serialize` and `Deserialize` for a shared object: its handle, and how to attach to it.
macro_rules! travels {
    ($name:ident $(<$t:ident $(: $bound:path)?>)?, $what:literal, |$it:ident| $handle:expr, $attach:expr) => {
        impl $(<$t $(: $bound)?>)? ::serde::Serialize for $name $(<$t>)? {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                let $it = self;
                $crate::codec::serialize_handle($what, $handle, serializer)
            }
        }

        impl<'de $(, $t $(: $bound)?)?> ::serde::Deserialize<'de> for $name $(<$t>)? {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                $crate::codec::deserialize_handle($what, $attach, deserializer)
            }
        }
    };
}
pub(crate) use travels;

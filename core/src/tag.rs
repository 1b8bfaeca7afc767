//! What the bytes of a message are: one byte that travels with them.

/// What the bytes of a message are, for who reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u8);

impl Tag {
    /// Bytes without a meaning that the engine knows of.
    pub const RAW: Tag = Tag(0);
    /// Serde's postcard, as the Rust face writes.
    pub const POSTCARD: Tag = Tag(1);
    /// A Python pickle of protocol 5.
    pub const PICKLE: Tag = Tag(2);
    /// JSON text.
    pub const JSON: Tag = Tag(3);
}

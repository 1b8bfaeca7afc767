//! The program as it lies in memory: where its functions are, and which build it is.
#![allow(unsafe_code, reason = "asks the loader for the program's segments")]

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Lies in the same object as everything that is linked with this crate.
static ANCHOR: u8 = 0;

/// Tells one build of a program from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Build {
    /// What the linker noted in it.
    Note(Vec<u8>),
    /// Without such a note, which file it is, how long, and when it was written.
    File {
        inode: u64,
        length: u64,
        seconds: i64,
        nanos: i64,
    },
    /// Nothing is known of it.
    Unknown,
}

/// The object, among the program and its libraries, that this crate is linked into.
#[derive(Debug)]
pub(crate) struct Image {
    /// What the loader added to all addresses.
    base: usize,
    /// Where its instructions are.
    text: Range<usize>,
    build: Build,
}

impl Image {
    /// The one that runs.
    pub(crate) fn own() -> &'static Image {
        static OWN: OnceLock<Image> = OnceLock::new();
        OWN.get_or_init(find)
    }

    pub(crate) fn build(&self) -> &Build {
        &self.build
    }

    /// Where an instruction lies in the file, whatever the loader does; `None` if it lies in another one.
    pub(crate) fn offset_of(&self, address: usize) -> Option<u64> {
        let inside = self.text.contains(&address);
        inside.then(|| address.wrapping_sub(self.base) as u64)
    }

    /// Where the loader put what lies there in the file; `None` for what is no instruction.
    pub(crate) fn address_of(&self, offset: u64) -> Option<usize> {
        let address = self.base.wrapping_add(usize::try_from(offset).ok()?);
        self.text.contains(&address).then_some(address)
    }
}

fn find() -> Image {
    let mut found = Image {
        base: 0,
        text: 0..0,
        build: Build::Unknown,
    };
    // SAFETY: the callback has the type that the loader calls, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut found).cast()) };
    found
}

/// Looks whether an object has the anchor in it. The loader calls this for each.
///
/// # Safety
///
/// `object` is the loader's, and `found` an [`Image`] that nobody else uses.
unsafe extern "C" fn look_at(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    found: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: by the caller.
    let (object, found) = unsafe { (&*object, &mut *found.cast::<Image>()) };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader says that so many headers lie there, for as long as the object is loaded.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let base = object.dlpi_addr as usize;
    let range = |header: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        start..start.wrapping_add(header.p_memsz as usize)
    };
    let loaded = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD;
    let anchor = (&raw const ANCHOR).addr();
    if !headers
        .iter()
        .filter(loaded)
        .any(|header| range(header).contains(&anchor))
    {
        return 0;
    }
    found.base = base;
    let text = headers
        .iter()
        .filter(loaded)
        .filter(|header| header.p_flags & libc::PF_X != 0);
    for range in text.map(range) {
        let joined = if found.text.is_empty() {
            range
        } else {
            found.text.start.min(range.start)..found.text.end.max(range.end)
        };
        found.text = joined;
    }
    let notes = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE);
    for range in notes.map(range) {
        // SAFETY: a segment of notes is part of a loaded one, and nobody writes there.
        let notes = unsafe {
            std::slice::from_raw_parts(range.start as *const u8, range.end - range.start)
        };
        if let Some(id) = build_id(notes) {
            found.build = Build::Note(id.to_vec());
            return 1;
        }
    }
    // SAFETY: the loader's name is a string, empty for the program itself.
    let name = unsafe { std::ffi::CStr::from_ptr(object.dlpi_name) };
    let path = match name.to_str() {
        Ok("") | Err(_) => PathBuf::from("/proc/self/exe"),
        Ok(path) => PathBuf::from(path),
    };
    if let Ok(file) = path.metadata() {
        found.build = Build::File {
            inode: file.ino(),
            length: file.len(),
            seconds: file.mtime(),
            nanos: file.mtime_nsec(),
        };
    }
    1
}

/// The build's number among ELF notes: each has the lengths of its name and contents, and a type.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const BUILD_ID: u32 = 3;
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |index: usize| {
            u32::from_ne_bytes(header[index * 4..][..4].try_into().expect("four bytes"))
        };
        let (name, rest) = rest.split_at_checked((word(0) as usize).next_multiple_of(4))?;
        let contents = rest.get(..word(1) as usize)?;
        if word(2) == BUILD_ID && name == b"GNU\0" {
            return Some(contents);
        }
        notes = rest.get((word(1) as usize).next_multiple_of(4)..)?;
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Build::Note(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Build::File {
                inode,
                length,
                seconds,
                ..
            } => write!(f, "file {inode}, {length} bytes, of second {seconds}"),
            Build::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_again_by_its_place_in_the_file() {
        let image = Image::own();
        let address = build_id as fn(&'static [u8]) -> Option<&'static [u8]> as usize;
        let offset = image.offset_of(address).unwrap();
        assert_eq!(image.address_of(offset), Some(address));
        assert_ne!(image.build(), &Build::Unknown);
    }

    #[test]
    fn what_is_no_function_of_the_program_has_no_place() {
        let image = Image::own();
        let local = 0u8;
        assert_eq!(image.offset_of((&raw const local).addr()), None);
        assert_eq!(image.address_of(u64::MAX), None);
        assert_eq!(image.address_of(1 << 60), None);
    }

    #[test]
    fn notes_that_are_cut_short_have_no_build() {
        let note = [
            4, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(build_id(&note), Some(&note[16..]));
        for length in 0..note.len() {
            assert_eq!(build_id(&note[..length]), None);
        }
    }
}

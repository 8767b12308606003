//! One block of 512 bytes: the header that every entry of a tar archive begins with.

use crate::error::Reason;

pub(crate) const BLOCK: usize = 512;
pub(crate) type Block = [u8; BLOCK];

/// What does not fit in a field of the header is said by a PAX record instead.
pub(crate) const LONGEST_NAME: usize = 100;
pub(crate) const LARGEST_ID: u64 = 0o777_7777;
pub(crate) const LARGEST_SIZE: u64 = 0o777_7777_7777;

pub(crate) mod flag {
    pub(crate) const OLD_FILE: u8 = 0;
    pub(crate) const FILE: u8 = b'0';
    pub(crate) const HARD_LINK: u8 = b'1';
    pub(crate) const SYMLINK: u8 = b'2';
    pub(crate) const CHARACTER: u8 = b'3';
    pub(crate) const BLOCK_DEVICE: u8 = b'4';
    pub(crate) const DIRECTORY: u8 = b'5';
    pub(crate) const FIFO: u8 = b'6';
    pub(crate) const CONTIGUOUS: u8 = b'7';
    pub(crate) const PAX: u8 = b'x';
    pub(crate) const PAX_SOLARIS: u8 = b'X';
    pub(crate) const PAX_GLOBAL: u8 = b'g';
    pub(crate) const GNU_LONG_NAME: u8 = b'L';
    pub(crate) const GNU_LONG_LINK: u8 = b'K';
    pub(crate) const GNU_SPARSE: u8 = b'S';
}

/// What goes into a header. Too long or too large parts are cut: a PAX record before it then says them.
#[derive(Default)]
pub(crate) struct Fields<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
}

pub(crate) fn build(fields: &Fields<'_>) -> Block {
    let mut block = [0; BLOCK];
    text(&mut block[..100], fields.name);
    octal(&mut block[100..108], fields.mode.into());
    octal(&mut block[108..116], fields.uid);
    octal(&mut block[116..124], fields.gid);
    octal(&mut block[124..136], fields.size);
    octal(&mut block[136..148], fields.mtime);
    block[156] = fields.flag;
    text(&mut block[157..257], fields.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    octal(&mut block[148..155], sum.into());
    block
}

fn text(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Digits with a NUL at the end; what does not fit becomes 0.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = if value >> (3 * digits) == 0 { value } else { 0 };
    for (at, byte) in field[..digits].iter_mut().rev().enumerate() {
        *byte = b'0' + (value >> (3 * at) & 7) as u8;
    }
    field[digits] = 0;
}

/// A header as it was read, its checksum right.
pub(crate) struct Header(Block);

impl Header {
    pub(crate) fn parse(block: Block) -> Result<Self, Reason> {
        let told = number(&block[148..156]).ok_or(Reason::Malformed("checksum"))?;
        let blank = |(at, &byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { byte };
        let bytes = || block.iter().enumerate().map(blank);
        let unsigned: i64 = bytes().map(i64::from).sum();
        // Some old programs took bytes for signed ones.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if told != unsigned && told != signed {
            return Err(Reason::Corrupt("the checksum of a header is wrong".into()));
        }
        Ok(Self(block))
    }

    pub(crate) fn flag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // GNU's own format has other things there.
        if &self.0[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(crate) fn link(&self) -> &[u8] {
        until_nul(&self.0[157..257])
    }

    pub(crate) fn mode(&self) -> Result<u32, Reason> {
        let mode = number(&self.0[100..108]).ok_or(Reason::Malformed("mode"))?;
        Ok((mode & 0o7777) as u32)
    }

    pub(crate) fn uid(&self) -> Result<i64, Reason> {
        number(&self.0[108..116]).ok_or(Reason::Malformed("owner"))
    }

    pub(crate) fn gid(&self) -> Result<i64, Reason> {
        number(&self.0[116..124]).ok_or(Reason::Malformed("group"))
    }

    pub(crate) fn size(&self) -> Result<u64, Reason> {
        let size = number(&self.0[124..136]).ok_or(Reason::Malformed("size"))?;
        size.try_into().map_err(|_| Reason::Malformed("size"))
    }

    pub(crate) fn mtime(&self) -> Result<i64, Reason> {
        number(&self.0[136..148]).ok_or(Reason::Malformed("time"))
    }

    /// Of GNU's own sparse format: the first segments, the true size, whether blocks with more segments follow.
    pub(crate) fn gnu_sparse(&self) -> (&[u8], &[u8], bool) {
        (&self.0[386..482], &self.0[483..495], self.0[482] != 0)
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits, or GNU's base 256 with its sign; an empty field is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 { -1 } else { i64::from(first & 0x3f) };
        let mut value = start;
        for &byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
        }
        // The sign is in every bit of the first byte, so that anything else is a number too large for us.
        return (first == 0x80 || first == 0xff || first & 0x40 == 0).then_some(value);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| !(b'0'..=b'7').contains(byte));
    let (digits, rest) = digits.split_at(end.unwrap_or(digits.len()));
    if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return None;
    }
    let mut value: i64 = 0;
    for digit in digits {
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_gnu_tar_writes_them() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"00000009", None),
            (b"12x45678", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn what_is_built_is_read_again() {
        let fields = Fields {
            name: b"a/b",
            flag: flag::SYMLINK,
            mode: 0o4755,
            uid: 65_534,
            gid: LARGEST_ID,
            size: LARGEST_SIZE,
            mtime: 1_700_000_000,
            link: b"../target",
        };
        let header = Header::parse(build(&fields)).expect("a header");
        assert_eq!((header.name(), header.link()), (b"a/b".to_vec(), &b"../target"[..]));
        assert_eq!(header.flag(), flag::SYMLINK);
        assert_eq!(header.mode(), Ok(0o4755));
        assert_eq!((header.uid(), header.gid()), (Ok(65_534), Ok(0o777_7777)));
        assert_eq!((header.size(), header.mtime()), (Ok(LARGEST_SIZE), Ok(1_700_000_000)));
    }

    #[test]
    fn a_header_with_a_flipped_bit_is_refused() {
        let mut block = build(&Fields::default());
        block[3] ^= 1;
        assert!(Header::parse(block).is_err());
    }
}

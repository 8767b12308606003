//! Archives as they travel: plain, gzip or zstd.

use std::io::{self, BufReader, Chain, Cursor, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// The fastest level: the others cost more time than they save bytes.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;
/// Memory that a stranger's archive may ask for, as a power of two: 32 MiB.
const ZSTD_WINDOW_LOG: u32 = 25;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Tar,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Format {
    /// By the first bytes; what is neither gzip nor zstd is taken for plain.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Tar,
        }
    }
}

/// The tar stream in an archive, whatever it is compressed with. What follows the end of the compressed data is an
/// error, as is an end that comes too early.
pub struct Source<R: Read> {
    stream: Stream<Sent<R>>,
    sent: Arc<AtomicU64>,
}

type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

enum Stream<R: Read> {
    Tar(Begun<R>),
    Gzip(Box<MultiGzDecoder<BufReader<Begun<R>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Begun<R>>>>),
}

struct Sent<R> {
    input: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Sent<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl<R: Read> Source<R> {
    /// Looks at the first bytes.
    ///
    /// # Errors
    /// Those of `input`.
    pub fn open(input: R) -> io::Result<Self> {
        let sent = Arc::new(AtomicU64::new(0));
        let mut input = Sent {
            input,
            count: Arc::clone(&sent),
        };
        let mut first = Vec::new();
        input.by_ref().take(4).read_to_end(&mut first)?;
        let format = Format::of(&first);
        let begun = Cursor::new(first).chain(input);
        let buffered = |begun| BufReader::with_capacity(128 * 1024, begun);
        let stream = match format {
            Format::Tar => Stream::Tar(begun),
            Format::Gzip => Stream::Gzip(Box::new(MultiGzDecoder::new(buffered(begun)))),
            Format::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(buffered(begun))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Stream::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { stream, sent })
    }

    /// Bytes taken from the input so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tar(stream) => stream.read(buffer),
            Stream::Gzip(stream) => stream.read(buffer),
            Stream::Zstd(stream) => stream.read(buffer),
        }
    }
}

/// Compresses what is written to it. Without [`Compressed::finish`] what comes out has no end, and is no archive.
pub struct Compressed<W: Write>(Encoder<W>);

enum Encoder<W: Write> {
    Tar(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressed<W> {
    /// # Errors
    /// Those of the compressor's own memory.
    pub fn new(output: W, format: Format) -> io::Result<Self> {
        Ok(Self(match format {
            Format::Tar => Encoder::Tar(output),
            Format::Gzip => Encoder::Gzip(GzEncoder::new(output, flate2::Compression::new(GZIP_LEVEL))),
            Format::Zstd => {
                let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Encoder::Zstd(encoder)
            }
        }))
    }

    /// What is written to. A compressor that is dropped still writes an end: whoever gives an archive up tells its
    /// output first, or the archive looks whole.
    pub fn output_mut(&mut self) -> &mut W {
        match &mut self.0 {
            Encoder::Tar(output) => output,
            Encoder::Gzip(encoder) => encoder.get_mut(),
            Encoder::Zstd(encoder) => encoder.get_mut(),
        }
    }

    /// Writes the end.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> io::Result<W> {
        let mut output = match self.0 {
            Encoder::Tar(output) => output,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        output.flush()?;
        Ok(output)
    }
}

impl<W: Write> Write for Compressed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Encoder::Tar(output) => output.write(data),
            Encoder::Gzip(encoder) => encoder.write(data),
            Encoder::Zstd(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Encoder::Tar(output) => output.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

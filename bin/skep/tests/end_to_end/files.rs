//! Large files and large directories: every byte and name true, the server's memory flat. `make soak-files` is the
//! long form.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use reqwest::{Method, StatusCode};

use crate::installation::{Installation, OciRuntime, field, resident_bytes};
use crate::model::amount;

const PIECE: u64 = 1 << 20;
/// What the server may grow by over what it has at rest.
const MOST_GROWTH: u64 = 32 << 20;

/// The most memory that a process had since it is watched.
pub(crate) struct MemoryWatch {
    highest: Arc<AtomicU64>,
    watching: tokio::task::JoinHandle<()>,
}

impl MemoryWatch {
    pub(crate) fn start(pid: u32) -> Self {
        let highest = Arc::new(AtomicU64::new(resident_bytes(pid)));
        let seen = highest.clone();
        let watching = tokio::spawn(async move {
            loop {
                seen.fetch_max(resident_bytes(pid), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { highest, watching }
    }

    /// In bytes.
    pub(crate) fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// A file that is up there: of each piece all bytes are the number of the piece.
struct Large<'a> {
    skep: &'a Installation,
    bot: String,
    bytes: u64,
}

impl Large<'_> {
    async fn upload(&self) {
        let pieces =
            (0..self.bytes / PIECE).map(|n| Ok::<_, std::io::Error>(Bytes::from(vec![n as u8; PIECE as usize])));
        let path = format!("/bots/{}/container/fs/upload?path=/data/large", self.bot);
        let request = self
            .skep
            .client
            .request(Method::PUT, &path)
            .timeout(Duration::from_secs(1200));
        let answer = request
            .body(reqwest::Body::wrap_stream(stream::iter(pieces)))
            .send()
            .await;
        let answer = answer.expect("the upload is answered");
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
    }

    async fn download(&self, range: Option<Range<u64>>) {
        let path = format!("/bots/{}/container/fs/download?path=/data/large", self.bot);
        let request = self
            .skep
            .client
            .request(Method::GET, &path)
            .timeout(Duration::from_secs(1200));
        let (request, status) = match &range {
            Some(range) => {
                let range = format!("bytes={}-{}", range.start, range.end - 1);
                (request.header("range", range), StatusCode::PARTIAL_CONTENT)
            }
            None => (request, StatusCode::OK),
        };
        let range = range.unwrap_or(0..self.bytes);
        let answer = request.send().await.expect("the download is answered");
        assert_eq!(answer.status(), status);
        assert_eq!(answer.content_length(), Some(range.end - range.start));
        let (mut at, mut body) = (range.start, answer.bytes_stream());
        while let Some(mut piece) = body.try_next().await.expect("the download is whole") {
            while !piece.is_empty() {
                let of_one = piece.len().min((PIECE - at % PIECE) as usize);
                let expected = [(at / PIECE) as u8; 4096];
                for bytes in piece.split_to(of_one).chunks(expected.len()) {
                    assert!(bytes == &expected[..bytes.len()], "a wrong byte after {at}");
                }
                at += of_one as u64;
            }
        }
        assert_eq!(at, range.end);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_up_down_and_by_range_leaves_the_servers_memory_flat() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("large", None).await;
    skep.client.output(&bot, "true").await;
    let large = Large {
        skep: &skep,
        bot,
        bytes: amount(512, 10 << 10) as u64 * PIECE,
    };
    let idle = resident_bytes(skep.server_pid());
    let memory = MemoryWatch::start(skep.server_pid());
    let begun = Instant::now();
    large.upload().await;
    let up = begun.elapsed();
    large.download(None).await;
    let down = begun.elapsed() - up;
    // The whole of it in the long form; no range begins or ends with a piece.
    let range_bytes = amount(96, 256) as u64 * PIECE + 12_345;
    let mut start = large.bytes - amount(256, 10 << 10) as u64 * PIECE;
    while start < large.bytes {
        let end = (start + range_bytes).min(large.bytes);
        large.download(Some(start..end)).await;
        start = end;
    }
    far_into_a_file(&skep, &large.bot).await;
    let grown = memory.highest().saturating_sub(idle);
    println!(
        "{} MiB up in {up:?}, down in {down:?}, by range in {:?}: the server grew by {} KiB over {} KiB",
        large.bytes >> 20,
        begun.elapsed() - up - down,
        grown >> 10,
        idle >> 10
    );
    assert!(
        grown <= MOST_GROWTH,
        "the server grew by {} KiB over {} KiB",
        grown >> 10,
        idle >> 10
    );
}

/// By a number that needs more than 32 bits, of a file that is nearly all hole.
async fn far_into_a_file(skep: &Installation, bot: &str) {
    const FROM: u64 = 5 << 30;
    const BYTES: u64 = 12 << 10;
    let write = format!("dd of=/data/far bs=1k seek={} conv=notrunc 2> /dev/null", FROM >> 10);
    let make = format!("truncate -s 6G /data/far && head -c {BYTES} /dev/zero | tr '\\0' x | {write}");
    skep.client.output(bot, &make).await;
    let path = format!("/bots/{bot}/container/fs/download?path=/data/far");
    let range = format!("bytes={FROM}-{}", FROM + BYTES - 1);
    let request = skep.client.request(Method::GET, &path).header("range", range);
    let answer = request.send().await.expect("the download is answered");
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    let bytes = answer.bytes().await.expect("the download is whole");
    assert_eq!(bytes.len() as u64, BYTES);
    assert!(bytes.iter().all(|byte| *byte == b'x'), "it is of another place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_directory_is_listed_by_pages_with_each_name_once() {
    let (count, page_length) = (amount(20_000, 1_000_000), amount(1000, 10_000));
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("pages", None).await;
    let make = format!("mkdir /data/many && cd /data/many && seq {count} | sed 's/^/file-/' | xargs -n 1000 touch");
    skep.client.output_within(&bot, &make, 1200).await;
    let idle = resident_bytes(skep.server_pid());
    let memory = MemoryWatch::start(skep.server_pid());
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    let (mut names, mut pages, mut cursor) = (Vec::with_capacity(count), 0, String::new());
    loop {
        let asked = Instant::now();
        let path = format!("/bots/{bot}/container/fs/list?path=/data/many&limit={page_length}{cursor}");
        let page = skep.client.good(Method::GET, &path, None).await;
        slowest = slowest.max(asked.elapsed());
        pages += 1;
        let entries = page["entries"].as_array().expect("a page has entries");
        assert!(entries.len() <= page_length, "{} entries", entries.len());
        names.extend(entries.iter().map(|entry| field(entry, "name").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    println!(
        "{count} files by {pages} pages in {:?}, the slowest {slowest:?}; the server grew by {} KiB",
        begun.elapsed(),
        memory.highest().saturating_sub(idle) >> 10
    );
    let mut expected: Vec<String> = (1..=count).map(|number| format!("file-{number}")).collect();
    expected.sort_unstable();
    assert!(
        names == expected,
        "{} names, not those of {count} files in order",
        names.len()
    );
    assert!(memory.highest() <= idle + MOST_GROWTH, "the server grew");
}

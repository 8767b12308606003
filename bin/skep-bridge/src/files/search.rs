//! Lines of files that match a pattern, in the order of a recursive listing. Bounded in time and memory, whatever the
//! tree and the pattern are.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobMatcher};
use grep_matcher::Matcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use skep_bridge_protocol::workspace::{SearchMatch, SearchRequest};

use super::read::open_regular;
use super::walk::{Walk, walk};

/// How long a search looks.
const SEARCH_WITHIN: Duration = Duration::from_secs(30);
/// What a compiled pattern may take.
const MOST_PATTERN_BYTES: usize = 4 * 1024 * 1024;
/// A file with a longer line is left there.
const LONGEST_LINE_BYTES: usize = 1024 * 1024;
/// What is shown of a line.
const SHOWN_BYTES: usize = 4 * 1024;

/// A search that is well formed.
pub(crate) struct Search {
    matcher: RegexMatcher,
    glob: Option<Glob>,
    most: u32,
}

struct Glob {
    matcher: GlobMatcher,
    /// It is about the name alone.
    of_name: bool,
}

/// An error, and the path it is about.
type Told<T> = Result<T, (PathBuf, io::Error)>;

impl Search {
    /// # Errors
    /// Why the pattern or the glob is none.
    pub(crate) fn new(request: &SearchRequest) -> Result<Self, String> {
        let matcher = RegexMatcherBuilder::new()
            .case_insensitive(request.ignore_case)
            .line_terminator(Some(b'\n'))
            .size_limit(MOST_PATTERN_BYTES)
            .dfa_size_limit(MOST_PATTERN_BYTES)
            .build(&request.pattern)
            .map_err(|error| format!("pattern: {error}"))?;
        let glob = match request.glob.as_str() {
            "" => None,
            text => Some(Glob::new(text)?),
        };
        let most = request.max_results;
        Ok(Self { matcher, glob, most })
    }

    /// Tells each line that matches to `found`. True: that is not all.
    ///
    /// # Errors
    /// Those of the file system, with the path, and what `found` says.
    pub(crate) fn run(&self, root: &Path, found: &mut dyn FnMut(SearchMatch) -> io::Result<()>) -> Told<bool> {
        let told = |error| (root.to_path_buf(), error);
        let mut run = Run {
            search: self,
            searcher: SearcherBuilder::new()
                .line_number(true)
                .binary_detection(BinaryDetection::quit(0))
                .heap_limit(Some(LONGEST_LINE_BYTES))
                .build(),
            until: Instant::now() + SEARCH_WITHIN,
            left: self.most,
            is_cut: false,
            found,
        };
        if !root.is_dir() {
            let (file, _) = open_regular(root, None).map_err(told)?;
            if self.takes(root.as_os_str().as_bytes()) {
                run.file(root.as_os_str().as_bytes(), &file).map_err(told)?;
            }
            return Ok(run.is_cut);
        }
        let options = Walk {
            recursive: true,
            one_file_system: true,
            ..Walk::default()
        };
        let mut prefix = root.as_os_str().as_bytes().to_vec();
        if !prefix.ends_with(b"/") {
            prefix.push(b'/');
        }
        let walked = walk(root, &options, &mut |item| {
            run.is_cut |= Instant::now() > run.until;
            if !run.is_cut
                && self.takes(item.relative)
                && let Some(file) = item.open_regular()?
            {
                run.file(&[&prefix, item.relative].concat(), &file)?;
            }
            Ok(match run.is_cut {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        });
        walked.map_err(told)?;
        Ok(run.is_cut)
    }

    fn takes(&self, relative: &[u8]) -> bool {
        let Some(glob) = &self.glob else { return true };
        let name = relative.rsplit(|byte| *byte == b'/').next().unwrap_or(relative);
        let subject = if glob.of_name { name } else { relative };
        glob.matcher.is_match(Path::new(std::ffi::OsStr::from_bytes(subject)))
    }
}

impl Glob {
    fn new(text: &str) -> Result<Self, String> {
        let built = GlobBuilder::new(text.trim_start_matches('/'))
            .literal_separator(true)
            .build();
        let glob = built.map_err(|error| format!("glob: {error}"))?;
        Ok(Self {
            matcher: glob.compile_matcher(),
            of_name: !text.contains('/'),
        })
    }
}

/// One search under way.
struct Run<'a> {
    search: &'a Search,
    searcher: Searcher,
    until: Instant,
    left: u32,
    is_cut: bool,
    found: &'a mut dyn FnMut(SearchMatch) -> io::Result<()>,
}

impl Run<'_> {
    fn file(&mut self, path: &[u8], file: &File) -> io::Result<()> {
        let (search, until) = (self.search, self.until);
        let mut lines = Lines {
            path,
            matcher: &search.matcher,
            left: &mut self.left,
            is_cut: &mut self.is_cut,
            found: self.found,
            gone: None,
        };
        let timed = Timed { file, until };
        let searched = self.searcher.search_reader(&search.matcher, timed, &mut lines);
        match (lines.gone.take(), searched) {
            (Some(error), _) => Err(error),
            (None, Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                self.is_cut = true;
                Ok(())
            }
            // A line that is too long, or a file that cannot be read on: the others are looked at all the same.
            (None, Err(_) | Ok(())) => Ok(()),
        }
    }
}

/// A file that cannot be read any more when the time is over.
struct Timed<'a> {
    file: &'a File,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Instant::now() > self.until {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => self.file.read(buffer),
        }
    }
}

/// The matches of one file.
struct Lines<'a> {
    path: &'a [u8],
    matcher: &'a RegexMatcher,
    left: &'a mut u32,
    is_cut: &'a mut bool,
    found: &'a mut dyn FnMut(SearchMatch) -> io::Result<()>,
    /// Why nobody listens any more.
    gone: Option<io::Error>,
}

impl Sink for Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, matched: &SinkMatch<'_>) -> io::Result<bool> {
        if *self.left == 0 {
            *self.is_cut = true;
            return Ok(false);
        }
        *self.left -= 1;
        let line = matched.bytes();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let first = self.matcher.find(line).map_err(io::Error::other)?;
        let before = &line[..first.map_or(0, |first| first.start())];
        let found = SearchMatch {
            path: self.path.to_vec(),
            line: matched.line_number().unwrap_or(0),
            column: 1 + String::from_utf8_lossy(before).chars().count() as u64,
            text: line[..line.len().min(SHOWN_BYTES)].to_vec(),
        };
        match (self.found)(found) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.gone = Some(error);
                Ok(false)
            }
        }
    }
}

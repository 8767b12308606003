//! The log of a workspace: what its bridge wrote, and among it what the kernel did: kills for want of memory, and
//! processes it refused.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skep_names::BotId;
use skep_runtime::log::LogFollower;
use skep_store::LifecycleEventRow;

use super::followers::OUT_OF_MEMORY;
use super::refusals::REFUSED_PROCESSES;
use crate::error::{Error, Result};
use crate::skep::Skep;

/// Between two looks at a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Every how many looks the store is asked, too.
const LOOKS_TO_ASK: u32 = 5;
/// The events of what the kernel did; at most so many of each are shown.
const DEEDS: [&str; 2] = [OUT_OF_MEMORY, REFUSED_PROCESSES];
const MOST_DEEDS: u32 = 256;

/// Of each of [`DEEDS`], the last one that was told. They are asked for one after the other, and one of the first may come
/// in between, with a smaller number than one of the second.
#[derive(Debug, Clone, Copy, Default)]
struct Told([i64; DEEDS.len()]);

impl Told {
    fn note(&mut self, deeds: &[LifecycleEventRow]) {
        for (last, event) in self.0.iter_mut().zip(DEEDS) {
            let of_it = deeds.iter().filter(|deed| deed.event_type == event);
            *last = of_it.map(|deed| deed.seq).fold(*last, i64::max);
        }
    }
}

impl Skep {
    /// The last lines of a workspace's log (`None`: all that is kept), whether it runs or not. The text is a
    /// tenant's, made harmless for a terminal.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub async fn workspace_log(&self, bot: &BotId, tail: Option<u64>) -> Result<String> {
        let since = self.workspace_of_log(bot).await?;
        let places = self.runtime().log_places(bot);
        let text = read_blocking(move || places.read()).await?;
        let deeds = self.deeds(bot, Told::default(), since).await?;
        Ok(last_lines(merge(&text, &deeds), tail))
    }

    /// As [`Skep::workspace_log`], then whole lines as they come, over ends and starts of the workspace. Ends when
    /// the workspace is deleted; breaks with an error when the server goes down.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub async fn follow_workspace_log(
        &self,
        bot: &BotId,
        tail: Option<u64>,
    ) -> Result<BoxStream<'static, Result<String>>> {
        let since = self.workspace_of_log(bot).await?;
        let places = self.runtime().log_places(bot);
        let (text, follower) = read_blocking(move || LogFollower::begin(places)).await?;
        let deeds = self.deeds(bot, Told::default(), since).await?;
        let mut told = Told::default();
        told.note(&deeds);
        let following = Following {
            skep: self.clone(),
            bot: bot.clone(),
            since,
            told,
            follower: Some(follower),
            looks: 0,
            ended: false,
        };
        let first = last_lines(merge(&text, &deeds), tail);
        let first = stream::iter((!first.is_empty()).then_some(Ok(first)));
        Ok(first.chain(stream::try_unfold(following, Following::more)).boxed())
    }

    /// When the workspace was made: what the kernel did before that was done to an earlier one. `None` while it has no row.
    async fn workspace_of_log(&self, bot: &BotId) -> Result<Option<DateTime<Utc>>> {
        self.require_workspace(bot).await?;
        Ok(self.store().container(bot).await?.map(|row| row.created_at))
    }

    /// Those that were not told yet, in their order.
    async fn deeds(&self, bot: &BotId, told: Told, since: Option<DateTime<Utc>>) -> Result<Vec<LifecycleEventRow>> {
        let mut deeds = Vec::new();
        for (event, after) in DEEDS.into_iter().zip(told.0) {
            deeds.extend(self.store().lifecycle_events_of(bot, event, after, MOST_DEEDS).await?);
        }
        deeds.sort_by_key(|deed| deed.seq);
        deeds.retain(|deed| since.is_none_or(|since| deed.created_at >= since));
        Ok(deeds)
    }
}

struct Following {
    skep: Skep,
    bot: BotId,
    since: Option<DateTime<Utc>>,
    told: Told,
    /// Always there between two looks.
    follower: Option<LogFollower>,
    looks: u32,
    ended: bool,
}

impl Following {
    /// Waits for the next lines.
    async fn more(mut self) -> Result<Option<(String, Self)>> {
        loop {
            if self.ended {
                return Ok(None);
            }
            tokio::select! {
                biased;
                () = self.skep.going_down().cancelled() => return Err(Error::GoingDown),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.looks += 1;
            let mut deeds = Vec::new();
            if self.looks.is_multiple_of(LOOKS_TO_ASK) {
                // Before the last look at the files: what was written before the end is told.
                self.ended = self.is_gone().await?;
                deeds = self.skep.deeds(&self.bot, self.told, self.since).await?;
                self.told.note(&deeds);
            }
            let text = merge(&self.look().await?, &deeds);
            if !text.is_empty() {
                return Ok(Some((text, self)));
            }
        }
    }

    async fn look(&mut self) -> Result<String> {
        let Some(mut follower) = self.follower.take() else {
            return Err(Error::internal("following a log", io::Error::other("a look was lost")));
        };
        let (text, follower) = read_blocking(move || follower.added().map(|text| (text, follower))).await?;
        self.follower = Some(follower);
        Ok(text)
    }

    /// Deleted, or deleted and made anew. A runtime that is away tells nothing about it.
    async fn is_gone(&mut self) -> Result<bool> {
        match self.skep.workspace_of_log(&self.bot).await {
            Ok(made) => {
                let gone = self.since.is_some() && made != self.since;
                self.since = self.since.or(made);
                Ok(gone)
            }
            Err(Error::ContainerNotFound) => Ok(true),
            Err(Error::RuntimeUnavailable { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

async fn read_blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    const OPERATION: &str = "reading the log of a workspace";
    match tokio::task::spawn_blocking(work).await {
        Ok(read) => read.map_err(|error| Error::internal(OPERATION, error)),
        Err(panicked) => Err(Error::internal(OPERATION, panicked)),
    }
}

/// Puts the deeds among the lines by their time. Times in the text are the tenant's word: a false one moves lines of
/// ours about, and loses none.
fn merge(text: &str, deeds: &[LifecycleEventRow]) -> String {
    if deeds.is_empty() {
        return text.to_owned();
    }
    let mut deeds: VecDeque<&LifecycleEventRow> = deeds.iter().collect();
    let mut merged = String::with_capacity(text.len() + deeds.len() * 96);
    for line in text.split_inclusive('\n') {
        if let Some(time) = time_of(line) {
            while let Some(deed) = deeds.pop_front_if(|deed| deed.created_at < time) {
                merged.push_str(&deed_line(deed));
            }
        }
        merged.push_str(line);
    }
    if !merged.is_empty() && !merged.ends_with('\n') {
        merged.push('\n');
    }
    merged.extend(deeds.into_iter().map(deed_line));
    merged
}

fn time_of(line: &str) -> Option<DateTime<Utc>> {
    let word = line.split_ascii_whitespace().next()?;
    DateTime::parse_from_rfc3339(word).ok().map(|time| time.to_utc())
}

fn deed_line(deed: &LifecycleEventRow) -> String {
    let time = deed.created_at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let said = match deed.event_type.as_str() {
        REFUSED_PROCESSES => "a process was not started: as many run as may",
        _ => "a process was killed for want of memory",
    };
    format!("{time} kernel: {said}\n")
}

fn last_lines(text: String, tail: Option<u64>) -> String {
    let Some(tail) = tail.and_then(|tail| usize::try_from(tail).ok()) else {
        return text;
    };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines[lines.len().saturating_sub(tail)..].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deed(time: &str) -> LifecycleEventRow {
        LifecycleEventRow {
            seq: 1,
            container_id: "workspace-b".to_owned(),
            event_type: OUT_OF_MEMORY.to_owned(),
            payload: json!({}),
            created_at: DateTime::parse_from_rfc3339(time).unwrap().to_utc(),
        }
    }

    #[test]
    fn deeds_of_the_kernel_stand_where_their_time_is() {
        let text = "2026-01-01T00:00:01.000Z one\nno time\n2026-01-01T00:00:03.000Z three\n";
        let merged = merge(text, &[deed("2026-01-01T00:00:02Z"), deed("2026-01-01T00:00:04Z")]);
        assert_eq!(
            merged,
            "2026-01-01T00:00:01.000Z one\nno time\n\
             2026-01-01T00:00:02.000Z kernel: a process was killed for want of memory\n\
             2026-01-01T00:00:03.000Z three\n\
             2026-01-01T00:00:04.000Z kernel: a process was killed for want of memory\n"
        );
        assert_eq!(merge(text, &[]), text);
    }

    #[test]
    fn a_kill_that_comes_while_refusals_are_asked_for_is_told_at_the_next_look() {
        let (mut told, mut refused) = (Told::default(), deed("2026-01-01T00:00:02Z"));
        refused.event_type = REFUSED_PROCESSES.to_owned();
        refused.seq = 11;
        told.note(&[refused]);
        let after = |event| DEEDS.into_iter().zip(told.0).find(|one| one.0 == event).unwrap().1;
        assert_eq!(after(REFUSED_PROCESSES), 11);
        assert_eq!(after(OUT_OF_MEMORY), 0, "number 10 is not seen yet");
    }

    #[test]
    fn a_tail_is_so_many_lines() {
        let tail = |text: &str, count| last_lines(text.to_owned(), Some(count));
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a\n");
        assert_eq!(tail("a\n", 0), "");
        assert_eq!(last_lines("a\nb\n".to_owned(), None), "a\nb\n");
        assert_eq!(tail("", u64::MAX), "");
    }
}

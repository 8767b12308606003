//! Fetches one layer from a registry into the content store; goes on where a cut connection stopped.

use std::collections::BTreeMap;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::daemon::{Daemon, Lease};
use super::distribution::{Repository, Retry};
use super::ingest::{CHUNK, Committed, Expected, Ingest, Opened, abort, ingest_name};
use super::keyed_lock::KeyedLock;
use super::manifest::Descriptor;
use super::progress::Tracker;
use super::transport::{Failure, chain, shown};
use crate::{LayerPhase, Result, RuntimeError};

/// A try that got so far was worth it: the next failure counts as the first.
const WORTH_IT: u64 = 1 << 20;

/// What all layers of a pull share.
pub(super) struct Fetcher<'a> {
    pub(super) daemon: &'a Daemon,
    pub(super) lease: &'a Lease,
    pub(super) repository: &'a Repository<'a>,
    pub(super) tracker: &'a Tracker,
    pub(super) locks: &'a KeyedLock,
}

impl Fetcher<'_> {
    /// Stores one layer under its digest, with labels. One that is there is only labelled.
    pub(super) async fn fetch(&self, layer: &Descriptor, labels: &BTreeMap<String, String>) -> Result<()> {
        let _only_one = self.locks.lock(layer.digest.as_str()).await;
        let mut opened = Ingest::open(self.daemon, self.lease, expected(layer)).await?;
        loop {
            let Opened::Writing(mut ingest) = opened else {
                self.tracker.phase(&layer.digest, LayerPhase::Verifying);
                return self.daemon.label_blob(&layer.digest, labels).await;
            };
            let continued = ingest.offset() > 0;
            self.fill(layer, &mut ingest).await?;
            self.tracker.phase(&layer.digest, LayerPhase::Verifying);
            match ingest.commit(labels).await? {
                Committed::Stored(_) => return Ok(()),
                // What an earlier pull left may have been damaged by a crash; only what this one
                // fetched from its first byte on is the registry's fault.
                Committed::Different if continued => {
                    tracing::info!(layer = %layer.digest, "what an earlier pull left of this layer was wrong");
                    opened = Ingest::restart(self.daemon, self.lease, expected(layer)).await?;
                }
                Committed::Different => {
                    abort(self.daemon, &ingest_name(&layer.digest)).await?;
                    return Err(RuntimeError::Registry {
                        reason: format!("what the registry sent as layer {} has another digest", layer.digest),
                    });
                }
            }
        }
    }

    async fn fill(&self, layer: &Descriptor, ingest: &mut Ingest) -> Result<()> {
        let mut last = None;
        for place in 0..self.repository.places() {
            let mut retry = Retry::default();
            loop {
                let before = ingest.offset();
                let Err(failure) = self.append(place, layer, ingest).await else {
                    return Ok(());
                };
                if ingest.offset() - before >= WORTH_IT {
                    retry.forget();
                }
                if let Err(failure) = retry.after(failure).await {
                    last = Some(failure);
                    break;
                }
            }
        }
        match last {
            // A manifest that names a blob its own registry lacks is the registry's failure.
            None | Some(Failure::Missing) => Err(RuntimeError::Registry {
                reason: format!("the registry lacks layer {} of its own image", layer.digest),
            }),
            Some(failure) => Err(self.repository.told(failure)),
        }
    }

    /// One connection's worth: from where the blob stands to its end.
    async fn append(&self, place: usize, layer: &Descriptor, ingest: &mut Ingest) -> std::result::Result<(), Failure> {
        if ingest.offset() == layer.size {
            return Ok(());
        }
        let mut answer = self.repository.blob(place, layer, ingest.offset()).await?;
        let mut skip = bytes_to_skip(&answer, ingest.offset())?;
        let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK);
        loop {
            let part = match answer.chunk().await {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(error) => {
                    // What came before the cut is kept.
                    flush(ingest, &mut buffer).await?;
                    let host = shown(answer.url());
                    return Err(Failure::passing(format!(
                        "the connection to registry {host} was cut: {}",
                        chain(error)
                    )));
                }
            };
            let mut part = &part[..];
            let skipped = skip.min(part.len() as u64);
            skip -= skipped;
            part = &part[skipped as usize..];
            if ingest.offset() + buffer.len() as u64 + part.len() as u64 > layer.size {
                return Err(Failure::registry(format!(
                    "layer {} is longer than the {} bytes its manifest says",
                    layer.digest, layer.size
                )));
            }
            while !part.is_empty() {
                let (now, later) = part.split_at(part.len().min(CHUNK - buffer.len()));
                buffer.extend_from_slice(now);
                part = later;
                if buffer.len() == CHUNK {
                    flush(ingest, &mut buffer).await?;
                }
            }
            // Sooner than it is written: a slow registry takes long to fill a whole chunk.
            self.tracker
                .offset(&layer.digest, ingest.offset() + buffer.len() as u64);
        }
        flush(ingest, &mut buffer).await?;
        if ingest.offset() < layer.size {
            return Err(Failure::passing(format!("layer {} ended early", layer.digest)));
        }
        Ok(())
    }
}

async fn flush(ingest: &mut Ingest, buffer: &mut Vec<u8>) -> std::result::Result<(), Failure> {
    let full = std::mem::replace(buffer, Vec::with_capacity(CHUNK));
    ingest.write(full).await.map_err(Failure::Final)
}

fn expected(layer: &Descriptor) -> Expected {
    Expected {
        reference: ingest_name(&layer.digest),
        total: Some(layer.size),
        digest: Some(layer.digest.clone()),
    }
}

/// A registry that does not know ranges sends all of it again.
fn bytes_to_skip(answer: &Response, offset: u64) -> std::result::Result<u64, Failure> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(offset);
    }
    let range = answer
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let start = range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .and_then(|start| start.trim().parse::<u64>().ok());
    match start {
        Some(start) if start <= offset => Ok(offset - start),
        _ => Err(Failure::registry(
            "the registry sent another part of a layer than was asked for",
        )),
    }
}

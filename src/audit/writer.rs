//! The task that owns the output: chains and writes lines, sets checkpoints, retries, and drains at
//! the stop.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::anchor::{AnchorFile, Checkpoint, Schedule};
use super::chain::Head;
use super::line::{self, Body};
use super::sink::Sink;
use super::{AuditError, Record, Shared, budget};
use crate::telemetry::Chain;

/// Records taken from the queue at once; the rest stays where its bound is known.
const BATCH_RECORDS_MAX: usize = 64;
/// Pause between attempts while the output fails.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// What stands for the callers that share a budget because there are too many.
const OTHER_CALLERS: &str = "others";

/// Owns the output. Run it as the supervised task of the evidence stage.
pub struct AuditWriter {
    records: mpsc::Receiver<Record>,
    shared: Arc<Shared>,
    /// Locked only on the blocking pool, by one piece of work at a time.
    sink: Arc<Mutex<Sink>>,
    /// Lines taken from the queue and not yet written; at most one batch and its summaries.
    lines: VecDeque<Vec<u8>>,
    /// The newest line, written or not.
    head: Head,
    anchor: Option<AnchorFile>,
    schedule: Schedule,
    anchor_failed: bool,
    /// The last rotation that the anchor does not know of.
    rotated: Option<Head>,
    /// When what callers did beyond their budgets is to be written.
    summary_at: Option<Instant>,
}

impl AuditWriter {
    pub(super) fn new(
        records: mpsc::Receiver<Record>,
        shared: Arc<Shared>,
        sink: Sink,
        anchor: Option<AnchorFile>,
        schedule: Schedule,
    ) -> Self {
        Self {
            records,
            sink: Arc::new(Mutex::new(sink)),
            lines: VecDeque::new(),
            head: Head::start(&shared.instance),
            shared,
            anchor,
            schedule,
            anchor_failed: false,
            rotated: None,
            summary_at: None,
        }
    }

    /// Writes until `evidence` is cancelled, then takes what is still queued, writes and syncs it.
    ///
    /// A failing output is no reason to end: it is tried again every second. An error means that
    /// records were lost at the stop, or that a write panicked.
    pub async fn run(mut self, evidence: CancellationToken) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH_RECORDS_MAX);
        self.schedule.written(self.head.seq, Instant::now());
        loop {
            let waiting = !self.lines.is_empty();
            // Every arm is cancel-safe: `recv_many` leaves records in the queue, `notified` keeps
            // its permit, and the others hold nothing.
            tokio::select! {
                biased;
                () = evidence.cancelled() => break,
                () = self.shared.reopen.notified() => self.reopen().await?,
                () = tokio::time::sleep(RETRY_EVERY), if waiting => {}
                () = at(self.schedule.due()), if !waiting => self.checkpoint(false).await?,
                () = at(self.summary_at), if !waiting => self.summarise(),
                () = self.shared.budgets.left_out.notified(), if self.summary_at.is_none() => {
                    self.summary_at = Some(Instant::now() + budget::WINDOW);
                }
                count = self.records.recv_many(&mut batch, BATCH_RECORDS_MAX), if !waiting => {
                    if count == 0 {
                        // All handles are gone; there is nothing left to do but the final sync.
                        evidence.cancelled().await;
                        break;
                    }
                }
            }
            self.encode(batch.drain(..));
            self.flush().await?;
        }
        self.finish().await
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        self.records.close();
        let mut rest = Vec::new();
        while let Ok(record) = self.records.try_recv() {
            rest.push(record);
        }
        self.encode(rest.into_iter());
        self.summarise();
        self.flush().await?;
        let unwritten = self.lines.len();
        anyhow::ensure!(unwritten == 0, "{unwritten} audit records could not be written");
        self.blocking(|sink, _| sink.sync()).await?.map_err(AuditError::Sync)?;
        self.checkpoint(false).await
    }

    fn encode(&mut self, records: impl Iterator<Item = Record>) {
        for record in records {
            self.push(record.at, Body::from(&record.event));
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.push(Timestamp::now(), Body::Lost { lost });
        }
    }

    /// One line for each caller that was over its budget. They do not go through the queue, so
    /// nothing can keep them out.
    fn summarise(&mut self) {
        self.summary_at = None;
        for (caller, left_out) in self.shared.budgets.take_left_out() {
            let identity = caller.as_ref().map_or(OTHER_CALLERS, |caller| caller.as_str());
            self.push(Timestamp::now(), Body::Coalesced { identity, left_out });
        }
    }

    fn push(&mut self, at: Timestamp, body: Body<'_>) {
        self.lines.push_back(line::encode(at, &self.shared.instance, &mut self.head, body));
    }

    /// Writes what waits. A failure is remembered and shown, not returned.
    async fn flush(&mut self) -> anyhow::Result<()> {
        let result = self.blocking(Sink::append).await?;
        let failed_before = self.shared.failed.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !failed_before => {
                tracing::error!(%error, "cannot write the audit log; no new secret is served");
            }
            Ok(()) if failed_before => tracing::info!("the audit log is written again"),
            _ => {}
        }
        if self.lines.is_empty() {
            self.schedule.written(self.head.seq, Instant::now());
        }
        Ok(())
    }

    async fn reopen(&mut self) -> anyhow::Result<()> {
        match self.blocking(|sink, _| sink.reopen()).await? {
            // The end of the old file is where the new one has to go on.
            Ok(rotation) => self.checkpoint(rotation).await?,
            Err(error) => {
                let error = Chain(&error).to_string();
                tracing::warn!(error, "audit file not reopened; lines go on to the old one");
            }
        }
        Ok(())
    }

    /// Says elsewhere how far the chain has come, and whether the log goes on in another file: what
    /// a checkpoint covers is on disk before.
    async fn checkpoint(&mut self, rotation: bool) -> anyhow::Result<()> {
        if !self.lines.is_empty() {
            return Ok(());
        }
        let (anchor, shared, head) = (self.anchor.clone(), Arc::clone(&self.shared), self.head);
        // Of several rotations that the anchor does not know only the newest one is made up for.
        let rotated = self.rotated.filter(|_| !rotation);
        self.rotated = if rotation { Some(head) } else { self.rotated };
        let work = move |sink: &mut Sink, _: &mut VecDeque<Vec<u8>>| {
            sink.sync().map_err(AuditError::Sync)?;
            let line = |head, rotation| {
                Checkpoint::new(Timestamp::now(), &shared.instance, head, rotation).to_line()
            };
            let lines = rotated.map(|rotated| line(rotated, true)).unwrap_or_default()
                + &line(head, rotation);
            anchor.map_or(Ok(()), |anchor| anchor.append(&lines))
        };
        let result = self.blocking(work).await?;
        let failed_before = std::mem::replace(&mut self.anchor_failed, result.is_err());
        match result {
            Ok(()) => {
                self.rotated = None;
                self.schedule.covered(head.seq);
            }
            Err(error) => {
                self.schedule.failed(head.seq, Instant::now());
                if !failed_before {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "an audit checkpoint is missing in the anchor");
                }
            }
        }
        let (instance, seq, hash) = (&self.shared.instance, head.seq, head.hash);
        tracing::info!(%instance, seq, %hash, rotation, "audit checkpoint");
        Ok(())
    }

    /// Runs one piece of output work off the async threads, so that a stuck disk or pipe holds up
    /// nobody but this task.
    async fn blocking<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Sink, &mut VecDeque<Vec<u8>>) -> R + Send + 'static,
    ) -> anyhow::Result<R> {
        let sink = Arc::clone(&self.sink);
        let mut lines = std::mem::take(&mut self.lines);
        let (lines, result) = tokio::task::spawn_blocking(move || {
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut sink, &mut lines);
            (lines, result)
        })
        .await
        .context("writing the audit log panicked")?;
        self.lines = lines;
        Ok(result)
    }
}

/// Waits for a time, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

//! The task that owns the output: numbers records, writes lines, retries, and drains at the stop.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::sink::Sink;
use super::{AuditEvent, Record, Shared, line};

/// Records taken from the queue at once; the rest stays where its bound is known.
const BATCH_RECORDS_MAX: usize = 64;
/// Pause between attempts while the output fails.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Owns the output. Run it as the supervised task of the evidence stage.
pub struct AuditWriter {
    records: mpsc::Receiver<Record>,
    shared: Arc<Shared>,
    /// Locked only on the blocking pool, by one piece of work at a time.
    sink: Arc<Mutex<Sink>>,
    /// Lines taken from the queue and not yet written; at most one batch.
    lines: VecDeque<Vec<u8>>,
    next_seq: u64,
}

impl AuditWriter {
    pub(super) fn new(records: mpsc::Receiver<Record>, shared: Arc<Shared>, sink: Sink) -> Self {
        let sink = Arc::new(Mutex::new(sink));
        Self { records, shared, sink, lines: VecDeque::new(), next_seq: 1 }
    }

    /// Writes until `evidence` is cancelled, then takes what is still queued, writes and syncs it.
    ///
    /// A failing output is no reason to end: it is tried again every second. An error means that
    /// records were lost at the stop, or that a write panicked.
    pub async fn run(mut self, evidence: CancellationToken) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH_RECORDS_MAX);
        loop {
            let waiting = !self.lines.is_empty();
            // Every arm is cancel-safe: `recv_many` leaves records in the queue, `notified` keeps
            // its permit, and the others hold nothing.
            tokio::select! {
                biased;
                () = evidence.cancelled() => break,
                () = self.shared.reopen.notified() => self.reopen().await?,
                () = tokio::time::sleep(RETRY_EVERY), if waiting => {}
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
        self.flush().await?;
        let unwritten = self.lines.len();
        anyhow::ensure!(unwritten == 0, "{unwritten} audit records could not be written");
        self.blocking(|sink, _| sink.sync()).await?.context("cannot sync the audit log")
    }

    fn encode(&mut self, records: impl Iterator<Item = Record>) {
        for record in records {
            self.push(record.at, &record.event);
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let message = format!("{lost} records did not fit into the queue and are lost");
            self.push(Timestamp::now(), &AuditEvent::Lifecycle { message });
        }
    }

    fn push(&mut self, at: Timestamp, event: &AuditEvent) {
        let line = line::encode(at, self.next_seq, &self.shared.instance, event);
        self.lines.push_back(line);
        self.next_seq += 1;
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
        Ok(())
    }

    async fn reopen(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.blocking(|sink, _| sink.reopen()).await? {
            let error = anyhow::Error::from(error);
            let error = format!("{error:#}");
            tracing::warn!(error, "audit file not reopened; lines go on to the old one");
        }
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

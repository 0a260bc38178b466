//! The caps of the audit log, for status and metrics.

use std::sync::Arc;

use super::budget::CALLERS_MAX;
use super::{Audit, QUEUE_RECORDS_MAX};
use crate::telemetry::{Limit, Metrics};

impl Audit {
    /// Has its caps shown; call once per process.
    pub fn watch_limits(&self, metrics: &Metrics) {
        let budgets = &self.shared.budgets;
        let (reached, lines) = (&budgets.reached, budgets.lines_per_window as usize);
        metrics.watch_queue("audit_queue", &self.queue, &reached.queue);
        // As much as a caller has while nobody else has a record waiting.
        metrics.watch_each("audit_queue_per_caller", QUEUE_RECORDS_MAX / 2, &reached.share);
        metrics.watch_each("audit_lines_per_second_per_caller", lines, &reached.lines);
        let shared = Arc::clone(&self.shared);
        metrics.watch_limit(move || {
            let budgets = &shared.budgets;
            let hits = budgets.reached.callers.total();
            Limit::shared("audit_callers", budgets.callers(), CALLERS_MAX, hits)
        });
    }
}

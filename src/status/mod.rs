//! What operators see: the broker's report, the volumes' board and the agent's facts as one view.
//!
//! | part | what it is |
//! |---|---|
//! | [`board`] | where volumes put their state |
//! | [`view`] | the view as plain data: the stable JSON of `/agent/v1/status` |
//! | [`build`], [`cause`], [`outlook`] | how it is made, pure: facts in, view out |
//! | [`explain`], [`prose`] | one secret in words |
//! | [`reload`] | what became of a reload |
//! | [`render`], [`changes`] | the view on a terminal, and what changed between two of them |

mod board;
mod build;
mod cause;
mod changes;
mod explain;
mod outlook;
mod prose;
mod reload;
mod render;
#[cfg(test)]
mod sample;
mod view;

pub use board::{Interest, ItemStatus, VolumeBoard, VolumeStatus};
pub use build::Facts;
pub use changes::changes;
pub use explain::{Access, ExplainView, ExplainedEntry, ExplainedFile};
pub use prose::render_explain;
pub use reload::{LossView, ReloadOutcome, ReloadView, render_reload};
pub use render::{Style, render_status, table};
pub use view::{
    DeadlineView, Health, ItemView, LeaseView, LimitView, LockedPodView, Moment, Outlook,
    PodDirectoryView, SecretView, SessionView, SourceView, StatusView, TroubleView, VolumeView,
};

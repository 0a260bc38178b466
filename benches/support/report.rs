//! Tables for people: figures, their target, and whether it is met.

use std::fmt::Display;
use std::time::Duration;

/// Prints a title, the column names and the rows, each column as wide as it needs to be.
pub fn print<const N: usize>(title: &str, columns: [&str; N], rows: &[[String; N]]) {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([columns[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("  {}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    println!("\n{title}");
    line(columns);
    line(
        std::array::from_fn::<_, N, _>(|at| "-".repeat(widths[at])).each_ref().map(String::as_str),
    );
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

/// `≥ 0.85 met` or `≥ 0.85 MISSED`.
pub fn verdict(target: impl Display, met: bool) -> String {
    format!("{target} {}", if met { "met" } else { "MISSED" })
}

/// The middle one of an odd number of figures.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The figure that `share` (0 to 1) of the sorted figures do not exceed.
pub fn percentile(sorted: &[u32], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let nanos = sorted.get((last as f64 * share) as usize).copied().unwrap_or(0);
    Duration::from_nanos(nanos.into())
}

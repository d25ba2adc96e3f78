//! One measured number.

use std::fmt;

/// What a number should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// The peer's number, divided by ours, at least this.
    FasterThanPeer(f64),
    /// Measured to be watched; nothing is promised.
    Watched,
}

/// A measured number.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The peer's name and median in the same rounds.
    pub peer: Option<(String, f64)>,
    /// The peer's number divided by ours: above 1, Karat needs less.
    pub ratio: Option<f64>,
    /// What it should be, in words.
    pub target: String,
    /// Whether it is.
    pub met: bool,
}

impl Figure {
    /// Holds the medians against the target.
    pub fn new(name: &'static str, value: f64, unit: &'static str, peer: Option<(&str, f64)>, target: Target) -> Self {
        let ratio = peer.map(|(_, theirs)| theirs / value);
        let (words, met) = match target {
            Target::AtMost(limit) => (format!("<= {limit}"), value <= limit),
            Target::FasterThanPeer(least) => (format!(">= {least} x peer"), ratio.is_some_and(|ratio| ratio >= least)),
            Target::Watched => ("-".to_owned(), true),
        };
        let peer = peer.map(|(name, value)| (name.to_owned(), value));
        Self {
            name,
            value,
            unit,
            peer,
            ratio,
            target: words,
            met,
        }
    }
}

impl fmt::Display for Figure {
    /// `name value unit peer ratio target ok|short`, in fixed columns; `-` where there is nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self
            .peer
            .as_ref()
            .map_or_else(|| "-".to_owned(), |(name, value)| format!("{name}={value:.1}"));
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let verdict = if self.met { "ok" } else { "short" };
        write!(
            f,
            "{:<34} {:>12.1} {:<5} {peer:<24} {ratio:>6} {:<14} {verdict}",
            self.name, self.value, self.unit, self.target
        )
    }
}

/// The middle of the values; the mean of the two middle ones of an even number. NaN for none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(upper), 0) => f64::midpoint(*upper, values.get(middle.saturating_sub(1)).copied().unwrap_or(*upper)),
        (Some(value), _) => *value,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn verdicts_follow_the_target() {
        let ours = |value, target| Figure::new("x", value, "s", Some(("peer", 10.0)), target).met;
        assert!(ours(5.0, Target::FasterThanPeer(1.5)) && !ours(8.0, Target::FasterThanPeer(1.5)));
        assert!(ours(5.0, Target::AtMost(5.0)) && !ours(5.1, Target::AtMost(5.0)));
        assert!(!Figure::new("x", f64::NAN, "s", None, Target::AtMost(5.0)).met);
    }
}

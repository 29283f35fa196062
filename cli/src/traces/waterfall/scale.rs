//! Where a moment stands, and which moments are labelled.

/// Width of the picture, in its own units.
pub const WIDTH: f64 = 1000.0;
/// Most labels at the widest view.
const MAX_TICKS: u64 = 6;
/// Into how many parts the finer marks divide a step.
const FINE: u64 = 5;

/// A time axis from 0.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    total_us: u64,
}

/// A labelled moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Tick {
    pub time_us: u64,
    /// Only worth a label where the picture is enlarged.
    pub is_fine: bool,
}

impl Scale {
    /// An axis of this length.
    pub fn new(total_us: u64) -> Self {
        Self { total_us: total_us.max(1) }
    }

    /// Where a moment stands; what lies outside is at the edge.
    pub fn x(&self, time_us: u64) -> f64 {
        WIDTH * time_us.min(self.total_us) as f64 / self.total_us as f64
    }

    /// The same in percent of the width.
    pub fn percent(&self, time_us: u64) -> f64 {
        self.x(time_us) / WIDTH * 100.0
    }

    /// Start and width of a span, at least `least` wide.
    pub fn span(&self, start_us: u64, end_us: u64, least: f64) -> (f64, f64) {
        let start = self.x(start_us);
        let width = (self.x(end_us) - start).max(least);
        (start.min(WIDTH - width), width)
    }

    /// Round moments to label.
    pub fn ticks(&self) -> Vec<Tick> {
        let step = step(self.total_us);
        let fine = (step / FINE).max(1);
        (0..=self.total_us / fine).map(|number| number * fine).map(|time_us| Tick { time_us, is_fine: !time_us.is_multiple_of(step) }).collect()
    }

    /// How a tick is written, in the unit of the axis.
    pub fn label(&self, time_us: u64) -> String {
        match step(self.total_us) {
            _ if time_us == 0 => "0".into(),
            100_000.. => format!("{} s", trim(time_us as f64 / 1e6)),
            1000.. => format!("{} ms", trim(time_us as f64 / 1e3)),
            _ => format!("{time_us} µs"),
        }
    }
}

/// 1, 2 or 5 times a power of ten, so that there are at most [`MAX_TICKS`] steps.
fn step(total_us: u64) -> u64 {
    let mut power = 1u64;
    loop {
        for factor in [1, 2, 5] {
            let step = power.saturating_mul(factor);
            if total_us / step <= MAX_TICKS {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few_for_any_length() {
        for total in [0, 1, 7, 999, 1000, 123_456, 2_104_000, 61_000_000, 86_400_000_000, u64::MAX >> 8, u64::MAX] {
            let scale = Scale::new(total);
            let ticks = scale.ticks();
            let labelled = ticks.iter().filter(|tick| !tick.is_fine).count();
            assert!((1..=MAX_TICKS as usize + 1).contains(&labelled) && ticks.len() <= 40, "{total}: {labelled} of {}", ticks.len());
            assert!(ticks.iter().all(|tick| (0.0..=100.0).contains(&scale.percent(tick.time_us))));
        }
        let scale = Scale::new(2_104_000);
        let labels: Vec<_> = scale.ticks().iter().filter(|tick| !tick.is_fine).map(|tick| scale.label(tick.time_us)).collect();
        assert_eq!(labels, ["0", "0.5 s", "1 s", "1.5 s", "2 s"]);
    }

    #[test]
    fn spans_stay_inside_and_can_be_seen() {
        let scale = Scale::new(1000);
        assert_eq!(scale.span(0, 500, 1.0), (0.0, 500.0));
        assert_eq!(scale.span(1000, 2000, 2.0), (998.0, 2.0));
        assert_eq!(scale.span(u64::MAX, 0, 2.0), (998.0, 2.0));
    }
}

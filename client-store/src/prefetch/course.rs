//! Whether a launch goes where the model expects it: how much of what it touches the model knows.

/// How many touches are remembered, about.
const MEMORY: f32 = 16.0;
/// Fewest touches before anything is said: that the model does not know the way, and that it knows another way.
const FIRST: u32 = 4;
const SURE_AFTER: u32 = 8;
/// Share of unknown touches from which on the way is lost, up to which it is found again, and from which on the launch is
/// another one.
const LOST: f32 = 0.4;
const BACK: f32 = 0.15;
const ELSEWHERE: f32 = 0.7;

/// News of the course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The model does not know much of what is touched.
    Lost,
    /// It knows next to nothing: what it predicts is of no use.
    Elsewhere,
    /// It does again.
    Back,
}

/// The course of a launch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Course {
    unknown: f32,
    weight: f32,
    count: u32,
    is_lost: bool,
    is_elsewhere: bool,
}

impl Course {
    /// Something was touched for the first time, which the model knows or not.
    pub(crate) fn touched(&mut self, known: bool) -> Option<Turn> {
        let decay = 1.0 - 1.0 / MEMORY;
        self.unknown = self.unknown * decay + f32::from(u8::from(!known));
        self.weight = self.weight * decay + 1.0;
        self.count = self.count.saturating_add(1);
        let share = self.unknown / self.weight;
        if !self.is_lost && self.count >= FIRST && share >= LOST {
            self.is_lost = true;
            return Some(Turn::Lost);
        }
        if !self.is_elsewhere && self.count >= SURE_AFTER && share >= ELSEWHERE {
            self.is_elsewhere = true;
            return Some(Turn::Elsewhere);
        }
        if self.is_lost && share <= BACK {
            (self.is_lost, self.is_elsewhere) = (false, false);
            return Some(Turn::Back);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(touches: impl IntoIterator<Item = bool>) -> Vec<Turn> {
        let mut course = Course::default();
        touches.into_iter().filter_map(|known| course.touched(known)).collect()
    }

    #[test]
    fn a_wrong_model_is_noticed_soon_and_a_good_one_is_trusted() {
        assert_eq!(turns((0..8).map(|_| false)), [Turn::Lost, Turn::Elsewhere]);
        // One touch in five is new: as of the version before.
        assert!(turns((0..500).map(|n| n % 5 != 4)).is_empty());
        assert_eq!(turns((0..100).map(|n| n > 10)), [Turn::Lost, Turn::Elsewhere, Turn::Back]);
    }
}

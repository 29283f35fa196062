//! Kinds of launches of one entry point, told apart by what they touch.
//!
//! `app --serve` and `app --migrate` are one entry point (arguments are never recorded), but two *variants*. A launch joins the variant
//! that it resembles, and founds one if it resembles none. When there are more than [`MAX_VARIANTS`], those two become one of which that
//! loses the least.
//!
//! # Likeness
//! Launches of all kinds touch much that is the same: loader, libraries, the interpreter. So what two touch alike counts little: a state
//! weighs `COMMON + 1 - min(p, q)`, where `p` and `q` are the shares of the launches of either that touch it. With these weights the
//! likeness of two is the Jaccard index of their shares, the sum of the smaller ones by the sum of the larger ones; a launch is a variant
//! whose shares are 1. Below [`RESEMBLES`] a launch is of another kind, that is if it differs in more than about 3 % of what it touches:
//! telling less apart would save hardly any bytes. But a difference of less than [`MIN_DIFFERENCE`] states is none: in a launch that
//! touches little, one odd name is no kind.
//!
//! Where a model is full and had to forget states, those that it does not have are left out of the comparison: else a launch that touches
//! more than a model holds would be of a new kind each time.
//!
//! Variants too many do little harm: with their shares as weights they predict together what one would.
//!
//! # What a stream of odd launches can do
//! The loss of making one of two grows with the squared difference of their shares (as a share of what either touches), with the lighter
//! one's launches, and with how far either *recurs*: the chance that what one of its launches touches another one touches too. A heap of
//! odd launches recurs not at all, however many they are, and a single launch has not shown that it does. So odd launches fill the room
//! that is left, and then fall into each other; kinds that came back, however similar, stay apart.
//!
//! The work is bounded: a launch is compared with at most [`MAX_VARIANTS`], and then at most all pairs of them once.

use std::iter::Peekable;
use std::slice::Iter;

use layer_format::model::MAX_VARIANTS;

use crate::draft::{DraftVariant, Launches};

/// Weight of a state that all launches of both touch.
const COMMON: f64 = 0.1;
/// At least so alike are launches of one kind.
const RESEMBLES: f64 = 0.75;
/// Variants that have become so alike are one.
const SAME: f64 = 0.9;
/// Recurrence of a variant of one launch.
const UNPROVEN: f64 = 0.1;
/// Launches that differ in less are of one kind; weighted states.
const MIN_DIFFERENCE: f64 = 3.0;

/// Adds what is one kind of launches elsewhere: to the variant that it resembles most, or as one more. It is known by `shares`: those of all
/// that it touches, unless the model forgot some of that. `launches` may then have one variant too many.
pub(crate) fn join(launches: &mut Launches, newer: DraftVariant, shares: &Shares) {
    if launches.variants.is_empty() {
        launches.variants.push(newer);
        return;
    }
    let alike = launches.variants.iter().map(|variant| Compared::of(&variant.shares(), shares));
    // Of equals the first.
    let best = (0..).zip(alike).reduce(|best, next| if next.1.likeness() > best.1.likeness() { next } else { best });
    match best {
        Some((at, compared)) if compared.likeness() >= RESEMBLES || compared.difference < MIN_DIFFERENCE => {
            launches.variants[at].absorb(&newer);
            let shares = launches.variants[at].shares();
            let same = |other: &DraftVariant| Compared::of(&other.shares(), &shares).likeness() >= SAME;
            if let Some(other) = (0..launches.variants.len()).find(|other| *other != at && same(&launches.variants[*other])) {
                unite(launches, at.min(other), at.max(other));
            }
        }
        _ => launches.variants.push(newer),
    }
}

/// Makes one of two, those of which it loses the least, until there are no more than there may be.
pub(crate) fn reduce(launches: &mut Launches) {
    while launches.variants.len() > MAX_VARIANTS {
        let shares: Vec<Shares> = launches.variants.iter().map(DraftVariant::shares).collect();
        let recurs: Vec<f64> = launches.variants.iter().zip(&shares).map(|(variant, shares)| recurrence(variant.launches, shares)).collect();
        // Launches before decay as well as after it: what came often does not give way to a row of others at once, but it does in the end.
        let mass: Vec<f64> = launches.variants.iter().map(|variant| (f64::from(variant.weight) * variant.launches.max(1) as f64).sqrt()).collect();
        let mut cheapest = (f64::INFINITY, 0, 1);
        for (a, b) in (0..shares.len()).flat_map(|a| (a + 1..shares.len()).map(move |b| (a, b))) {
            let light = mass[a] * mass[b] / (mass[a] + mass[b]).max(f64::MIN_POSITIVE);
            let loss = light * recurs[a].max(recurs[b]) * Compared::of(&shares[a], &shares[b]).scatter();
            if loss < cheapest.0 {
                cheapest = (loss, a, b);
            }
        }
        unite(launches, cheapest.1, cheapest.2);
    }
}

/// Makes one of variant `a` and a later one.
fn unite(launches: &mut Launches, a: usize, b: usize) {
    let other = launches.variants.remove(b);
    launches.variants[a].absorb(&other);
}

/// How likely another launch of a variant of so many touches what one touches. Estimated from their shares: the mean share of what is
/// touched, without the launch itself.
pub(crate) fn recurrence(launches: u64, shares: &Shares) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), (_, share)| (sum + share, squares + share * share));
    if launches < 2 || sum <= 0.0 {
        return UNPROVEN;
    }
    let launches = launches as f64;
    ((launches * squares / sum - 1.0) / (launches - 1.0)).clamp(0.0, 1.0)
}

/// States and the share of a variant's launches that touch them, ascending by state.
pub(crate) type Shares = Vec<(u32, f64)>;

/// Weighted sums over the states of two variants.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    smaller: f64,
    larger: f64,
    difference: f64,
    squares: f64,
}

impl Compared {
    fn of(a: &Shares, b: &Shares) -> Self {
        let mut compared = Self::default();
        let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (None, None) => return compared,
                (Some(one), Some(other)) => one.0.min(other.0),
                (Some(one), None) => one.0,
                (None, Some(other)) => other.0,
            };
            let share = |of: &mut Peekable<Iter<'_, (u32, f64)>>| of.next_if(|(state, _)| *state == next).map_or(0.0, |(_, share)| *share);
            let (one, other) = (share(&mut a), share(&mut b));
            compared.add(one, other);
        }
    }

    fn add(&mut self, a: f64, b: f64) {
        let weight = COMMON + 1.0 - a.min(b);
        self.smaller += weight * a.min(b);
        self.larger += weight * a.max(b);
        self.difference += weight * (a - b).abs();
        self.squares += weight * (a - b) * (a - b);
    }

    /// Weighted Jaccard index, `0.0..=1.0`; two that touch nothing are alike.
    fn likeness(&self) -> f64 {
        if self.larger > 0.0 { self.smaller / self.larger } else { 1.0 }
    }

    /// Squared difference as a share of what either touches, `0.0..=1.0`.
    fn scatter(&self) -> f64 {
        if self.larger > 0.0 { self.squares / self.larger } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::Seen;

    /// A variant that touches each of these with its share.
    fn variant(weight: f32, items: &[(std::ops::Range<u32>, f32)]) -> DraftVariant {
        let items = items.iter().flat_map(|(states, share)| states.clone().map(move |state| (state, share * weight)));
        DraftVariant { weight, launches: weight as u64, items: items.map(|(state, count)| (state, Seen { count, time_us: state, is_new: false })).collect() }
    }

    fn launches(variants: Vec<DraftVariant>) -> Launches {
        Launches { launches: 0, variants }
    }

    fn weights_after(variants: Vec<DraftVariant>, newer: DraftVariant) -> Vec<f32> {
        let mut launches = launches(variants);
        let shares = newer.shares();
        join(&mut launches, newer, &shares);
        launches.variants.iter().map(|variant| variant.weight).collect()
    }

    #[test]
    fn a_launch_joins_what_it_resembles_and_else_founds_a_variant() {
        let serve = || variant(1.0, &[(0..2000, 1.0), (2000..2050, 1.0)]);
        let migrate = || variant(1.0, &[(0..2000, 1.0), (3000..3050, 1.0)]);
        let both = || vec![variant(10.0, &[(0..2000, 1.0), (2000..2050, 1.0)]), variant(10.0, &[(0..2000, 1.0), (3000..3050, 1.0)])];
        for (what, variants, newer, expected) in [
            ("the first", vec![], serve(), vec![1.0]),
            ("the same", vec![serve()], serve(), vec![2.0]),
            ("the same but five odd touches of two thousand", vec![serve()], variant(1.0, &[(0..2045, 1.0), (9000..9005, 1.0)]), vec![2.0]),
            ("fifty others", vec![serve()], migrate(), vec![1.0, 1.0]),
            ("one of two", both(), serve(), vec![11.0, 10.0]),
            ("the other", both(), migrate(), vec![10.0, 11.0]),
            ("a third", both(), variant(1.0, &[(0..2000, 1.0), (4000..4040, 1.0)]), vec![10.0, 10.0, 1.0]),
            ("only the prefix of both", both(), variant(1.0, &[(0..300, 1.0)]), vec![10.0, 10.0, 1.0]),
            ("one odd name in a short launch", vec![variant(1.0, &[(0..5, 1.0), (5..6, 1.0)])], variant(1.0, &[(0..5, 1.0), (6..7, 1.0)]), vec![2.0]),
            ("nothing", both(), variant(1.0, &[]), vec![10.0, 10.0, 1.0]),
        ] {
            assert_eq!(weights_after(variants, newer), expected, "{what}");
        }
    }

    #[test]
    fn variants_that_grew_alike_become_one() {
        let touching = |weight, share| variant(weight, &[(0..1000, 1.0), (2000..2100, share)]);
        assert_eq!(weights_after(vec![touching(1.0, 1.0), touching(1.0, 0.6)], touching(1.0, 1.0)), [2.0, 1.0]);
        assert_eq!(weights_after(vec![touching(1.0, 1.0), touching(1.0, 0.6)], touching(100.0, 0.75)), [102.0]);
    }

    #[test]
    fn when_there_is_no_room_odd_launches_fall_into_each_other_and_honest_variants_stay() {
        let serve = variant(4.0, &[(0..1000, 1.0), (1000..1060, 1.0)]);
        let migrate = variant(4.0, &[(0..1000, 1.0), (2000..2060, 1.0)]);
        let mut launches = launches(vec![serve.clone(), migrate.clone()]);
        for odd in 0..200u32 {
            let newer = variant(1.0, &[(10_000 + odd * 100..10_100 + odd * 100, 1.0)]);
            let shares = newer.shares();
            join(&mut launches, newer, &shares);
            reduce(&mut launches);
            assert!(launches.variants.len() <= MAX_VARIANTS);
            assert_eq!((&launches.variants[0].items, &launches.variants[1].items), (&serve.items, &migrate.items), "after {odd}");
        }
        let total: f32 = launches.variants.iter().map(|variant| variant.weight).sum();
        assert_eq!(total, 208.0, "no launch is lost");
    }
}

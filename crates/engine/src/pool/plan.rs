//! What to make next, and what there is too much of. Pure.

/// What there is of one snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Supply {
    /// What there should be.
    pub(super) wanted: usize,
    pub(super) waiting: usize,
    /// On its way to be waiting.
    pub(super) making: usize,
    /// Could not be made, and is not to be tried again yet.
    pub(super) held_back: bool,
}

impl Supply {
    fn there(&self) -> usize {
        self.waiting + self.making
    }

    /// So few wait that more are made although somebody is being served.
    pub(super) fn is_scarce(&self) -> bool {
        self.waiting * 4 < self.wanted
    }
}

/// Which to make next, as long as all together fit into `room`: that which lacks the largest part.
pub(super) fn next(supplies: &[Supply], room: usize) -> Option<usize> {
    if supplies.iter().map(Supply::there).sum::<usize>() >= room {
        return None;
    }
    let lacking =
        supplies.iter().enumerate().filter(|(_, supply)| !supply.held_back && supply.there() < supply.wanted);
    // there/wanted, compared without division.
    lacking
        .min_by(|(_, a), (_, b)| (a.there() * b.wanted).cmp(&(b.there() * a.wanted)))
        .map(|(index, _)| index)
}

/// One more than is wanted may wait on: what is wanted of a snapshot goes up and down by one as it is restored.
const SLACK: usize = 1;

/// How many of each to give up: what nobody wants, and what does not fit into `room`, from where most wait.
pub(super) fn surplus(supplies: &[Supply], room: usize) -> Vec<usize> {
    let keep = |supply: &Supply| match supply.wanted {
        0 => 0,
        wanted => supply.waiting.min(wanted + SLACK),
    };
    let mut kept: Vec<_> = supplies.iter().map(keep).collect();
    let mut over = kept.iter().sum::<usize>().saturating_sub(room);
    while over > 0
        && let Some(most) = kept.iter_mut().max()
    {
        *most -= 1;
        over -= 1;
    }
    supplies.iter().zip(kept).map(|(supply, kept)| supply.waiting - kept).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn supply(wanted: usize, waiting: usize, making: usize) -> Supply {
        Supply { wanted, waiting, making, held_back: false }
    }

    #[test]
    fn what_lacks_the_largest_part_comes_first() {
        assert_eq!(next(&[supply(8, 4, 0), supply(4, 1, 0)], 99), Some(1));
        assert_eq!(next(&[supply(8, 4, 0), supply(4, 1, 2)], 99), Some(0), "what is being made counts");
        assert_eq!(next(&[supply(8, 8, 0), supply(0, 0, 0)], 99), None);
        assert_eq!(next(&[supply(8, 4, 0), supply(4, 1, 0)], 5), None, "the host is full");
        let held_back = Supply { held_back: true, ..supply(4, 0, 0) };
        assert_eq!(next(&[supply(8, 7, 0), held_back], 99), Some(0));
        assert!(supply(8, 1, 9).is_scarce() && !supply(8, 2, 0).is_scarce() && !supply(0, 0, 0).is_scarce());
    }

    fn supplies() -> impl Strategy<Value = Vec<Supply>> {
        let one = (0..20usize, 0..20usize, 0..4usize, any::<bool>());
        let one = one.prop_map(|(wanted, waiting, making, held_back)| Supply {
            wanted,
            waiting,
            making,
            held_back,
        });
        prop::collection::vec(one, 0..5)
    }

    proptest! {
        #[test]
        fn nothing_is_made_to_be_given_up(mut supplies in supplies(), room in 0..40usize) {
            if let Some(index) = next(&supplies, room) {
                supplies[index].waiting += supplies[index].making + 1;
                supplies[index].making = 0;
                let before = surplus(&supplies, room);
                prop_assert_eq!(before[index], 0);
            }
        }

        #[test]
        fn what_is_kept_is_wanted_and_fits(supplies in supplies(), room in 0..40usize) {
            let surplus = surplus(&supplies, room);
            let mut kept = 0;
            for (supply, surplus) in supplies.iter().zip(&surplus) {
                prop_assert!(*surplus <= supply.waiting);
                prop_assert!(supply.waiting - surplus <= supply.wanted + SLACK);
                prop_assert!(supply.wanted > 0 || *surplus == supply.waiting);
                kept += supply.waiting - surplus;
            }
            prop_assert!(kept <= room);
            let wanted: usize = supplies.iter().map(|supply| supply.waiting.min(supply.wanted)).sum();
            prop_assert!(kept >= wanted.min(room), "no more is given up than must be");
        }
    }
}

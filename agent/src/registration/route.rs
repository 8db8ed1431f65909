//! Which coordinator is asked next.
//!
//! ```text
//!  taken ──lost──▶ pause, the same again ──failed──▶ pause, the next of the list …
//!  declined with a leader that was not asked since the last pause ──▶ at once to that one
//!  declined without one ──▶ pause, the same again; after a few times the next of the list
//! ```
//!
//! Invariants:
//! - Between two pauses nobody is asked twice, and no more than [`CHASE`] are asked at all: hints that point to each other,
//!   or to ever new places, do not make an agent spin.
//! - Every coordinator of the list is asked again and again, whatever hints say.
//! - A hint to the place that has just failed is not followed: whoever gave it does not know yet, and is asked again.

/// Places that are asked between two pauses.
const CHASE: usize = 4;
/// How often one that knows no leader is asked before the next one is. It reads the lease within a second or two.
const STAYS: u32 = 2;

/// What comes before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: another place is asked at once.
    AtOnce,
    /// A pause; then the same place is asked again, over the same connection.
    Stay,
    /// A pause; then the place is dialled.
    AfterPause,
}

#[derive(Debug)]
pub(super) struct Route {
    /// As configured, at least one.
    listed: Vec<String>,
    /// Of `listed`: the one that comes after the present one.
    next: usize,
    here: String,
    /// Since the last pause, with the present one.
    asked: Vec<String>,
    /// The last place that was lost or could not be reached.
    dead: Option<String>,
    stays: u32,
}

impl Route {
    pub fn new(listed: &[String]) -> Self {
        let mut route = Self {
            listed: listed.to_vec(),
            next: 0,
            here: String::new(),
            asked: Vec::new(),
            dead: None,
            stays: 0,
        };
        route.go_on();
        route
    }

    /// Whom to ask now.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// It took us.
    pub fn taken(&mut self) {
        self.dead = None;
        self.arrive(self.here.clone());
        // What comes after it, should it be lost, and the list is gone through from there.
        if let Some(at) = self.listed.iter().position(|listed| *listed == self.here) {
            self.next = (at + 1) % self.listed.len();
        }
    }

    /// It had taken us, and answers no more.
    pub fn lost(&mut self) -> Step {
        self.arrive(self.here.clone());
        Step::AfterPause
    }

    /// It cannot be reached, or did not take us for another reason than that it does not lead.
    pub fn failed(&mut self) -> Step {
        self.dead = Some(self.here.clone());
        self.go_on();
        Step::AfterPause
    }

    /// It does not lead, and says, perhaps, who does.
    pub fn declined(&mut self, leader: Option<&str>) -> Step {
        let follow = leader.filter(|leader| {
            let asked = self.asked.iter().any(|asked| asked == leader);
            !asked && self.asked.len() < CHASE && self.dead.as_deref() != Some(*leader)
        });
        if let Some(leader) = follow {
            self.here = leader.to_owned();
            self.asked.push(leader.to_owned());
            return Step::AtOnce;
        }
        if self.stays < STAYS {
            self.stays += 1;
            self.asked = vec![self.here.clone()];
            return Step::Stay;
        }
        self.dead = None;
        self.go_on();
        Step::AfterPause
    }

    /// The next of the list, other than the present one where there is another.
    fn go_on(&mut self) {
        let count = self.listed.len();
        let others = (0..count).map(|n| (self.next + n) % count);
        let at = others.into_iter().find(|at| self.listed[*at] != self.here).unwrap_or(0);
        self.next = (at + 1) % count;
        self.arrive(self.listed[at].clone());
    }

    fn arrive(&mut self, place: String) {
        self.asked = vec![place.clone()];
        self.here = place;
        self.stays = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn route(listed: &[&str]) -> Route {
        Route::new(&listed.iter().map(|&place| place.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn after_a_loss_the_same_one_comes_first_and_then_the_list_from_there() {
        let mut route = route(&["a", "b", "c"]);
        assert_eq!((route.failed(), route.here()), (Step::AfterPause, "b"));
        route.taken();
        let mut asked = Vec::new();
        assert_eq!(route.lost(), Step::AfterPause);
        for _ in 0..5 {
            asked.push(route.here().to_owned());
            assert_eq!(route.failed(), Step::AfterPause);
        }
        assert_eq!(asked, ["b", "c", "a", "b", "c"]);
    }

    #[test]
    fn a_leader_outside_of_the_list_is_followed_and_the_list_is_not_forgotten() {
        let mut route = route(&["a", "b"]);
        assert_eq!((route.declined(Some("x")), route.here()), (Step::AtOnce, "x"));
        route.taken();
        assert_eq!((route.lost(), route.here()), (Step::AfterPause, "x"));
        assert_eq!((route.failed(), route.here()), (Step::AfterPause, "b"));
        assert_eq!(
            (route.declined(Some("x")), route.here()),
            (Step::Stay, "b"),
            "x has just failed"
        );
        assert_eq!(
            (route.declined(Some("y")), route.here()),
            (Step::AtOnce, "y"),
            "b knows better now"
        );
    }

    /// What hints say about whom, and how many attempts there are between two pauses at most.
    #[test]
    fn whatever_hints_say_nobody_is_asked_twice_without_a_pause_and_all_are_asked() {
        let nowhere = BTreeMap::new();
        let each_other = BTreeMap::from([("a", "b"), ("b", "a"), ("c", "c")]);
        let circle = BTreeMap::from([("a", "b"), ("b", "c"), ("c", "a")]);
        let outside = BTreeMap::from([("a", "x"), ("b", "x"), ("c", "x"), ("x", "a")]);
        for hints in [nowhere, each_other, circle, outside] {
            let mut route = route(&["a", "b", "c"]);
            let mut since = vec![route.here().to_owned()];
            let mut asked = BTreeMap::<String, u32>::new();
            for _ in 0..100 {
                *asked.entry(route.here().to_owned()).or_default() += 1;
                let hint = hints.get(route.here()).copied();
                match route.declined(hint) {
                    Step::AtOnce => assert!(!since.contains(&route.here().to_owned()), "{hints:?}"),
                    Step::Stay | Step::AfterPause => since.clear(),
                }
                since.push(route.here().to_owned());
                assert!(since.len() <= CHASE);
            }
            assert!(
                ["a", "b", "c"].iter().all(|place| asked.contains_key(*place)),
                "{hints:?}: {asked:?}"
            );
        }
    }

    #[test]
    fn ever_new_places_are_not_chased_for_ever() {
        let mut route = route(&["a"]);
        let steps = (0..CHASE).map(|n| route.declined(Some(&format!("x{n}"))));
        assert_eq!(steps.last(), Some(Step::Stay));
    }
}

//! What follows from the events of a watch: which objects are there, and which are gone.
//!
//! After a gap a watch lists everything anew and does not say what went meanwhile. Whoever follows one has to know what
//! it was told by that watch before: other watches are responsible for other namespaces and kinds.

use std::collections::BTreeSet;

use kube_runtime::watcher::Event;

/// The objects that one watch told of, by key.
#[derive(Debug)]
pub(crate) struct Listing<K> {
    own: BTreeSet<K>,
    /// What a list that is being read has shown so far.
    listed: BTreeSet<K>,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            own: BTreeSet::new(),
            listed: BTreeSet::new(),
        }
    }
}

/// What became of one object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change<K, O> {
    /// It is so.
    Is(K, O),
    /// It is gone.
    Gone(K),
}

impl<K: Ord + Clone> Listing<K> {
    /// Takes an event; an object without a key is nobody's.
    pub(crate) fn take<O>(
        &mut self,
        event: Event<O>,
        key: impl FnOnce(&O) -> Option<K>,
    ) -> Vec<Change<K, O>> {
        let listing = matches!(event, Event::InitApply(_));
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::Apply(object) | Event::InitApply(object) => {
                let Some(key) = key(&object) else {
                    return Vec::new();
                };
                if listing {
                    self.listed.insert(key.clone());
                }
                self.own.insert(key.clone());
                vec![Change::Is(key, object)]
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let before = std::mem::replace(&mut self.own, listed);
                before.difference(&self.own).cloned().map(Change::Gone).collect()
            }
            Event::Delete(object) => {
                let Some(key) = key(&object) else {
                    return Vec::new();
                };
                self.own.remove(&key);
                vec![Change::Gone(key)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(listing: &mut Listing<u32>, event: Event<u32>) -> Vec<Change<u32, u32>> {
        listing.take(event, |number| Some(*number))
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone_and_nothing_else() {
        let mut listing = Listing::default();
        assert_eq!(told(&mut listing, Event::Apply(1)), [Change::Is(1, 1)]);
        assert_eq!(told(&mut listing, Event::Apply(2)), [Change::Is(2, 2)]);
        assert_eq!(told(&mut listing, Event::Init), []);
        assert_eq!(told(&mut listing, Event::InitApply(2)), [Change::Is(2, 2)]);
        assert_eq!(told(&mut listing, Event::InitApply(3)), [Change::Is(3, 3)]);
        assert_eq!(told(&mut listing, Event::InitDone), [Change::Gone(1)]);
        assert_eq!(told(&mut listing, Event::Delete(3)), [Change::Gone(3)]);
        // Of an empty list, all that is left.
        told(&mut listing, Event::Init);
        assert_eq!(told(&mut listing, Event::InitDone), [Change::Gone(2)]);
    }

    #[test]
    fn a_list_that_broke_off_makes_nothing_go() {
        let mut listing = Listing::default();
        told(&mut listing, Event::Apply(1));
        told(&mut listing, Event::Init);
        told(&mut listing, Event::InitApply(2));
        told(&mut listing, Event::Init);
        told(&mut listing, Event::InitApply(1));
        assert_eq!(told(&mut listing, Event::InitDone), [Change::Gone(2)]);
    }
}

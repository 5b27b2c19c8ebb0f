//! Topic filters in a tree, one level of the filter an edge (MQTT 5.0 section 4.7).

use std::{collections::HashMap, str::Split};

/// Values by topic filter.
#[derive(Debug)]
pub(crate) struct Trie<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Node<T>>,
    /// The edge `+`.
    single: Option<Box<Node<T>>>,
    /// Value of the filter that ends here with `#`.
    multi: Option<T>,
    /// Value of the filter that ends here.
    here: Option<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            children: HashMap::new(),
            single: None,
            multi: None,
            here: None,
        }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self {
            root: Node::default(),
        }
    }
}

impl<T: Default> Trie<T> {
    /// The value of a filter, made if it is not there.
    pub(crate) fn entry(&mut self, filter: &str) -> &mut T {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = match level {
                "#" => return node.multi.get_or_insert_default(),
                "+" => node.single.get_or_insert_default(),
                _ => node.children.entry(level.into()).or_default(),
            };
        }
        node.here.get_or_insert_default()
    }
}

impl<T> Trie<T> {
    /// The value of a filter.
    pub(crate) fn get(&self, filter: &str) -> Option<&T> {
        let mut node = &self.root;
        for level in filter.split('/') {
            node = match level {
                "#" => return node.multi.as_ref(),
                "+" => node.single.as_deref()?,
                _ => node.children.get(level)?,
            };
        }
        node.here.as_ref()
    }

    /// Calls `each` with every filter and its value, in no order.
    pub(crate) fn for_each(&self, each: &mut impl FnMut(&str, &T)) {
        self.root.for_each(&mut String::new(), each);
    }

    /// Changes the value of a filter, and removes it when the change says so.
    pub(crate) fn change(&mut self, filter: &str, change: impl FnOnce(&mut T) -> Fate) {
        self.root.change(filter.split('/'), change);
    }

    /// Calls `found` with the value of every filter that matches the topic.
    pub(crate) fn matching<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a T)) {
        // [MQTT-4.7.2-1]: a leading wildcard does not match a topic that begins with `$`.
        let wildcards = !topic.starts_with('$');
        self.root.matching(topic.split('/'), wildcards, &mut found);
    }
}

/// Whether a value stays after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays.
    Keep,
    /// It goes, with the branch that led to it alone.
    Remove,
}

impl<T> Node<T> {
    fn change(&mut self, mut levels: Split<'_, char>, change: impl FnOnce(&mut T) -> Fate) {
        fn apply<T>(value: &mut Option<T>, change: impl FnOnce(&mut T) -> Fate) {
            if value.as_mut().is_some_and(|value| change(value) == Fate::Remove) {
                *value = None;
            }
        }
        match levels.next() {
            None => apply(&mut self.here, change),
            Some("#") => apply(&mut self.multi, change),
            Some("+") => {
                if let Some(child) = &mut self.single {
                    child.change(levels, change);
                    if child.is_empty() {
                        self.single = None;
                    }
                }
            }
            Some(level) => {
                if let Some(child) = self.children.get_mut(level) {
                    child.change(levels, change);
                    if child.is_empty() {
                        self.children.remove(level);
                    }
                }
            }
        }
    }

    fn for_each(&self, filter: &mut String, each: &mut impl FnMut(&str, &T)) {
        let length = filter.len();
        let mut descend = |level: &str, visit: &mut dyn FnMut(&mut String)| {
            filter.push_str(level);
            visit(filter);
            filter.truncate(length);
        };
        if let Some(value) = &self.multi {
            descend("#", &mut |filter| each(filter, value));
        }
        if let Some(value) = &self.here {
            // The separator that led here is not part of the filter.
            descend("", &mut |filter| {
                each(filter.strip_suffix('/').unwrap_or(filter), value)
            });
        }
        if let Some(child) = &self.single {
            descend("+/", &mut |filter| child.for_each(filter, each));
        }
        for (level, child) in &self.children {
            descend(&format!("{level}/"), &mut |filter| child.for_each(filter, each));
        }
    }

    fn is_empty(&self) -> bool {
        self.here.is_none() && self.multi.is_none() && self.single.is_none() && self.children.is_empty()
    }

    fn matching<'a>(&'a self, mut levels: Split<'_, char>, wildcards: bool, found: &mut impl FnMut(&'a T)) {
        if wildcards && let Some(value) = &self.multi {
            found(value);
        }
        let Some(level) = levels.next() else {
            if let Some(value) = &self.here {
                found(value);
            }
            return;
        };
        if let Some(child) = self.children.get(level) {
            child.matching(levels.clone(), true, found);
        }
        if wildcards && let Some(child) = &self.single {
            child.matching(levels, true, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use foreshore_record::TopicFilter;
    use proptest::prelude::*;

    use super::*;

    fn found(trie: &Trie<Vec<usize>>, topic: &str) -> Vec<usize> {
        let mut all = Vec::new();
        trie.matching(topic, |values| all.extend(values));
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn finds_exactly_the_filters_that_match(
            filters in prop::collection::vec("(\\$?[ab]?|\\+)(/([ab]?|\\+)){0,3}(/#)?", 1..40),
            removed in prop::collection::vec(any::<bool>(), 40),
            topic in "\\$?[ab]?(/[ab]?){0,4}",
        ) {
            prop_assume!(!topic.is_empty());
            let filters: Vec<_> = filters.iter().filter_map(|filter| TopicFilter::new(filter).ok()).collect();
            let mut trie = Trie::<Vec<usize>>::default();
            for (index, filter) in filters.iter().enumerate() {
                trie.entry(filter.as_str()).push(index);
            }
            let gone = |index: &usize| removed[*index];
            for index in (0..filters.len()).filter(|index| gone(index)) {
                trie.change(filters[index].as_str(), |values| {
                    values.retain(|value| *value != index);
                    if values.is_empty() { Fate::Remove } else { Fate::Keep }
                });
            }
            let expected: Vec<_> =
                (0..filters.len()).filter(|index| !gone(index) && filters[*index].matches(&topic)).collect();
            prop_assert_eq!(found(&trie, &topic), expected);
        }
    }

    #[test]
    fn an_emptied_branch_leaves_nothing() {
        let mut trie = Trie::<Vec<usize>>::default();
        for filter in ["a/b/c", "a/+/c", "a/#", "#"] {
            trie.entry(filter).push(1);
        }
        for filter in ["a/b/c", "a/+/c", "a/#", "#"] {
            trie.change(filter, |_| Fate::Remove);
        }
        assert!(trie.root.is_empty());
    }
}

//! Where a field stands.

use saphyr_parser::Event;

use super::{Position, parser, position};

/// One step of a field's path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A mapping or sequence that the walk is in.
struct Level {
    /// How many steps of the path lead here; `None` beside the path.
    matched: Option<usize>,
    content: Content,
}

enum Content {
    /// `Some` while the value of a key is awaited: the steps that lead to that value.
    Mapping(Option<Option<usize>>),
    /// Items so far.
    Sequence(usize),
}

/// Finds the line and column of a field in one document of a text: those of its key or item, or of the deepest parent
/// that exists (a missing field is missing there). `None` only when the document does not exist.
///
/// The path is written as `spec.datasets[0].name`; keys that hold a dot stand in brackets, `labels[a.b/c]`.
pub(crate) fn locate(text: &str, document: usize, path: &str) -> Option<Position> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut walk = Walk {
        steps: steps(path),
        levels: Vec::new(),
        best: None,
    };
    let mut current: Option<usize> = None;
    for event in parser(text) {
        let (event, span) = event.ok()?;
        match event {
            Event::DocumentStart(..) => current = Some(current.map_or(0, |index| index + 1)),
            Event::DocumentEnd if current == Some(document) => break,
            event if current == Some(document) => walk.take(&event, position(span.start)),
            _ => {}
        }
    }
    walk.best.map(|(_, position)| position)
}

struct Walk {
    steps: Vec<Step>,
    levels: Vec<Level>,
    /// The longest match so far.
    best: Option<(usize, Position)>,
}

impl Walk {
    fn take(&mut self, event: &Event<'_>, at: Position) {
        match event {
            Event::Scalar(text, ..) => drop(self.node(Some(text), at)),
            Event::Alias(_) => drop(self.node(None, at)),
            Event::SequenceStart(..) => {
                let matched = self.node(None, at);
                self.levels.push(Level {
                    matched,
                    content: Content::Sequence(0),
                });
            }
            Event::MappingStart(..) => {
                let matched = self.node(None, at);
                self.levels.push(Level {
                    matched,
                    content: Content::Mapping(None),
                });
            }
            Event::SequenceEnd | Event::MappingEnd => drop(self.levels.pop()),
            _ => {}
        }
    }

    /// A node begins; tells how many steps of the path lead to it.
    fn node(&mut self, text: Option<&str>, at: Position) -> Option<usize> {
        let Some(level) = self.levels.last_mut() else {
            self.best.get_or_insert((0, at));
            return Some(0);
        };
        let next = level
            .matched
            .and_then(|matched| Some((matched, self.steps.get(matched)?)));
        let matched = match &mut level.content {
            Content::Mapping(awaited) => match awaited.take() {
                Some(matched) => return matched,
                None => {
                    let matched = next.and_then(|(matched, step)| match (step, text) {
                        (Step::Key(key), Some(text)) if key == text => Some(matched + 1),
                        _ => None,
                    });
                    *awaited = Some(matched);
                    matched
                }
            },
            Content::Sequence(items) => {
                let index = *items;
                *items += 1;
                next.and_then(|(matched, step)| (*step == Step::Index(index)).then_some(matched + 1))
            }
        };
        if let Some(matched) = matched
            && self.best.is_none_or(|(best, _)| matched > best)
        {
            self.best = Some((matched, at));
        }
        matched
    }
}

fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    loop {
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (inner, tail) = bracketed.split_once(']').unwrap_or((bracketed, ""));
            let quoted = inner.trim_matches(|character| character == '"' || character == '\'');
            steps.push(
                inner
                    .parse()
                    .map_or_else(|_| Step::Key(quoted.to_owned()), Step::Index),
            );
            rest = tail;
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let Some((key, tail)) = rest.split_at_checked(end) else {
                return steps;
            };
            if !key.is_empty() {
                steps.push(Step::Key(key.to_owned()));
            } else if !tail.starts_with('[') {
                return steps;
            }
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
kind: ConfigMap
---
kind: Asset
metadata: {name: a, labels: {a.b/c: x}}
spec:
  datasets:
  - name: one
    dataPoints:
    - {name: p, address: x}
    -
      name: q
  - name: two
";

    fn at(document: usize, path: &str) -> Option<(u32, u32)> {
        locate(TEXT, document, path).map(|position| (position.line, position.column))
    }

    #[test]
    fn finds_keys_and_items() {
        assert_eq!(at(0, "kind"), Some((2, 1)));
        assert_eq!(at(1, "kind"), Some((4, 1)));
        assert_eq!(at(1, "metadata.name"), Some((5, 12)));
        assert_eq!(at(1, "metadata.labels[a.b/c]"), Some((5, 30)));
        assert_eq!(at(1, "spec.datasets"), Some((7, 3)));
        assert_eq!(at(1, "spec.datasets[0].dataPoints[0].address"), Some((10, 17)));
        assert_eq!(at(1, "spec.datasets[0].dataPoints[1].name"), Some((12, 7)));
        assert_eq!(at(1, "spec.datasets[1]"), Some((13, 5)));
    }

    #[test]
    fn a_missing_field_is_missing_in_its_parent() {
        assert_eq!(at(1, "spec.datasets[1].dataPoints[4].name"), Some((13, 5)));
        assert_eq!(at(1, "status"), Some((4, 1)));
        assert_eq!(at(1, ""), Some((4, 1)));
        assert_eq!(at(2, "kind"), None);
    }

    #[test]
    fn a_key_of_the_same_name_elsewhere_does_not_count() {
        let text = "a:\n  b: 1\nb: 2\n";
        assert_eq!(locate(text, 0, "b").map(|position| position.line), Some(3));
    }
}

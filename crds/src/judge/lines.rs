//! Lines: where in a YAML file a field is, and which words readers of YAML disagree about.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::path::{FieldPath, Segment};

/// The line, from 1, of a field in one document of a YAML text, documents counted from 0. Of a field that is not
/// there (a missing one, or one behind an alias), the line of the innermost thing around it.
///
/// `None` where the text is no YAML up to that document.
#[must_use]
pub fn field_line(yaml: &str, document: usize, path: &FieldPath) -> Option<usize> {
    let mut walk = Walk {
        target: path.segments(),
        best: None,
        path: Vec::new(),
        open: Vec::new(),
    };
    let mut parser = Parser::new_from_str(yaml);
    let mut seen: usize = 0;
    while let Some(Ok((event, span))) = parser.next_event() {
        match event {
            Event::DocumentStart(_) => seen += 1,
            Event::DocumentEnd if seen == document + 1 => break,
            event if seen == document + 1 => walk.step(&event, span.start.line()),
            _ => {}
        }
    }
    walk.best.map(|(_, line)| line)
}

/// A word without quotes that YAML 1.1, which `kubectl` reads, takes for something else than YAML 1.2 does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmbiguousScalar {
    /// Line, from 1.
    pub line: usize,
    /// The word as it stands there.
    pub text: String,
}

/// All words of a YAML text that readers disagree about: `yes`, `on`, `010`, `1_000`, `<<`. A manifest that means
/// the same everywhere has none; what is meant as text wants quotes.
#[must_use]
pub fn ambiguous_scalars(yaml: &str) -> Vec<AmbiguousScalar> {
    let mut found = Vec::new();
    let mut parser = Parser::new_from_str(yaml);
    while let Some(Ok((event, span))) = parser.next_event() {
        if let Event::Scalar(text, ScalarStyle::Plain, _, None) = event
            && is_ambiguous(&text)
        {
            found.push(AmbiguousScalar {
                line: span.start.line(),
                text: text.into_owned(),
            });
        }
    }
    found
}

fn is_ambiguous(text: &str) -> bool {
    const WORDS: [&str; 7] = ["y", "yes", "on", "n", "no", "off", "<<"];
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || c == '_' || c == '.');
    let octal =
        digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    WORDS.contains(&text.to_lowercase().as_str()) || octal || (number && digits.contains('_'))
}

/// Follows events, knowing where it is, in search of a place.
struct Walk<'a> {
    target: &'a [Segment],
    /// Depth and line of the deepest value found on the way to the target.
    best: Option<(usize, usize)>,
    path: Vec<Segment>,
    open: Vec<Open>,
}

enum Open {
    /// An object: the line of the key that waits for its value.
    Mapping(Option<usize>),
    /// A list: the index of the next element.
    Sequence(usize),
    /// Something inside a key that is no word; it has no path.
    Key,
}

impl Walk<'_> {
    fn step(&mut self, event: &Event<'_>, line: usize) {
        let awaits_key = matches!(self.open.last(), Some(Open::Mapping(None)));
        let in_key = matches!(self.open.last(), Some(Open::Key));
        match event {
            Event::Scalar(text, ..) if awaits_key => self.key(text.to_string(), line),
            Event::Alias(_) if awaits_key => self.key(String::new(), line),
            Event::Scalar(..) | Event::Alias(_) => {
                self.enter(line);
                self.leave();
            }
            Event::MappingStart(..) | Event::SequenceStart(..) if awaits_key || in_key => {
                self.open.push(Open::Key);
            }
            Event::MappingStart(..) => {
                self.enter(line);
                self.open.push(Open::Mapping(None));
            }
            Event::SequenceStart(..) => {
                self.enter(line);
                self.open.push(Open::Sequence(0));
            }
            Event::MappingEnd | Event::SequenceEnd => match self.open.pop() {
                Some(Open::Key) if matches!(self.open.last(), Some(Open::Mapping(None))) => {
                    self.key(String::new(), line);
                }
                Some(Open::Key) => {}
                _ => self.leave(),
            },
            _ => {}
        }
    }

    fn key(&mut self, name: String, line: usize) {
        if let Some(Open::Mapping(waiting)) = self.open.last_mut() {
            *waiting = Some(line);
            self.path.push(Segment::Field(name));
        }
    }

    /// A value begins: its line is its key's, or its own in a list.
    fn enter(&mut self, line: usize) {
        let line = match self.open.last_mut() {
            Some(Open::Mapping(Some(key))) => *key,
            Some(Open::Sequence(next)) => {
                self.path.push(Segment::Index(*next));
                *next += 1;
                line
            }
            None => line,
            Some(Open::Mapping(None) | Open::Key) => return,
        };
        let deeper = self.best.is_none_or(|(depth, _)| depth < self.path.len());
        if deeper && self.target.starts_with(&self.path) {
            self.best = Some((self.path.len(), line));
        }
    }

    /// The value at `self.path` ends.
    fn leave(&mut self) {
        match self.open.last_mut() {
            Some(Open::Mapping(key)) => {
                *key = None;
                self.path.pop();
            }
            Some(Open::Sequence(_)) => {
                self.path.pop();
            }
            None | Some(Open::Key) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
kind: Device
spec:
  address: opc.tcp://a
  items:
  - name: a
    value: 1
  - {name: b, value: [1, 2,
     3]}
  ? [complex, key]
  : ignored
  last: &anchor
    deep: true
---
kind: Asset
spec: {device: x}
";

    fn line(document: usize, path: &str) -> Option<usize> {
        field_line(TEXT, document, &FieldPath::parse(path))
    }

    #[test]
    fn finds_the_line_of_a_field() {
        for (document, path, expected) in [
            (0, "kind", 2),
            (0, "spec", 3),
            (0, "spec.address", 4),
            (0, "spec.items[0].value", 7),
            (0, "spec.items[1]", 8),
            (0, "spec.items[1].value[2]", 9),
            (0, "spec.last.deep", 13),
            (1, "kind", 15),
            (1, "spec.device", 16),
        ] {
            assert_eq!(line(document, path), Some(expected), "{path}");
        }
    }

    #[test]
    fn of_a_missing_field_finds_what_is_around_it() {
        assert_eq!(line(0, "spec.items[0].absent"), Some(6));
        assert_eq!(line(0, "spec.absent.more"), Some(3));
        assert_eq!(line(0, ""), Some(2));
        assert_eq!(line(2, "kind"), None);
    }

    #[test]
    fn words_that_readers_disagree_about_are_told() {
        let yaml = "a: on\nb: 'on'\nc: [No, 010, 1_000, 0, 0.5, 10]\nd: !!str yes\n<<: {}\n";
        let found: Vec<_> = ambiguous_scalars(yaml)
            .into_iter()
            .map(|scalar| (scalar.line, scalar.text))
            .collect();
        let expected = [(1, "on"), (3, "No"), (3, "010"), (3, "1_000"), (5, "<<")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn any_text_is_survived() {
        for text in [
            "", "\t", "{", "a: [", "- - - -", "? ? ?", "&a *a", "--- ---", "a: b: c", "\u{0}",
        ] {
            assert!(
                field_line(text, 0, &FieldPath::parse("a.b")).is_none_or(|line| line == 1),
                "{text}"
            );
            assert_eq!(ambiguous_scalars(text), [], "{text}");
        }
    }
}

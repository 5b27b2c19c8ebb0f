//! XML as cameras send it: read tolerantly, by local names, within bounds.
//!
//! Namespace prefixes differ between makers, and some declare them wrongly; local names are unambiguous in all answers
//! that we read.

use quick_xml::{
    XmlVersion,
    events::{BytesStart, Event},
    reader::Reader,
};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;
/// Most elements and attributes of a document.
const MAX_ITEMS: usize = 100_000;

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    /// Name without its prefix.
    pub(crate) name: String,
    /// Attributes without their prefixes, in order.
    pub(crate) attributes: Vec<(String, String)>,
    /// Text of the element itself, without surrounding white space.
    pub(crate) text: String,
    /// Elements within it.
    pub(crate) children: Vec<Element>,
}

/// A document that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// The text is no XML.
    #[error("{0}")]
    Syntax(String),
    /// It is too deep or too large.
    #[error("more than {MAX_DEPTH} levels, or {MAX_ITEMS} elements and attributes")]
    TooLarge,
    /// It ends before its root element does.
    #[error("the document ends early")]
    Truncated,
}

impl Element {
    /// Reads a document.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut reader = Reader::from_str(text);
        let syntax = |error: quick_xml::Error| Malformed::Syntax(error.to_string());
        let mut open: Vec<Self> = Vec::new();
        let mut items = 0;
        loop {
            let event = reader.read_event().map_err(syntax)?;
            let closed = match event {
                Event::Start(start) => {
                    open.push(Self::begin(&start, &mut items)?);
                    if open.len() > MAX_DEPTH {
                        return Err(Malformed::TooLarge);
                    }
                    None
                }
                Event::Empty(start) => Some(Self::begin(&start, &mut items)?),
                Event::End(_) => open.pop().map(Self::end),
                Event::Text(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text.xml_content(XmlVersion::Implicit1_0));
                    }
                    None
                }
                Event::CData(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    }
                    None
                }
                Event::GeneralRef(reference) => {
                    if let Some(element) = open.last_mut() {
                        let resolved = reference.resolve_char_ref().ok().flatten();
                        let named =
                            || quick_xml::escape::resolve_predefined_entity(&reference).unwrap_or_default();
                        match resolved {
                            Some(character) => element.text.push(character),
                            None => element.text.push_str(named()),
                        }
                    }
                    None
                }
                Event::Eof => return Err(Malformed::Truncated),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => None,
            };
            if let Some(element) = closed {
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
        }
    }

    fn begin(start: &BytesStart<'_>, items: &mut usize) -> Result<Self, Malformed> {
        // Each is compared with all before it only when asked to, which would take a hostile element's square.
        let mut attributes = start.attributes();
        let attributes = attributes.with_checks(false).flatten().map(|attribute| {
            let name = attribute.key.local_name().as_ref().to_owned();
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_or_else(
                |_| attribute.value.clone().into_owned(),
                std::borrow::Cow::into_owned,
            );
            (name, value)
        });
        let attributes: Vec<_> = attributes.take(MAX_ITEMS).collect();
        *items += 1 + attributes.len();
        if *items > MAX_ITEMS {
            return Err(Malformed::TooLarge);
        }
        Ok(Self {
            name: start.local_name().as_ref().to_owned(),
            attributes,
            ..Self::default()
        })
    }

    /// White space goes only here: text comes in pieces, around references and other elements.
    fn end(mut self) -> Self {
        let text = self.text.trim();
        if text.len() < self.text.len() {
            self.text = text.to_owned();
        }
        self
    }

    /// The first child of that name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first element at a path of children.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Text at a path of children, if there is some.
    pub(crate) fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)
            .map(|element| element.text.trim())
            .filter(|text| !text.is_empty())
    }

    /// An attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// All elements of that name at any depth, in document order.
    pub(crate) fn descendants(&self, name: &str) -> Vec<&Self> {
        let mut found = Vec::new();
        let mut waiting: Vec<&Self> = self.children.iter().rev().collect();
        while let Some(element) = waiting.pop() {
            if element.name == name {
                found.push(element);
            }
            waiting.extend(element.children.iter().rev());
        }
        found
    }

    /// The first element of that name at any depth.
    pub(crate) fn descendant(&self, name: &str) -> Option<&Self> {
        self.descendants(name).into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_do_not_matter() {
        let element = Element::parse("<a:x xmlns:a='u'><b:y z='1'> t &amp; u </b:y></a:x>").unwrap();
        assert_eq!(element.text_at(&["y"]), Some("t & u"));
        assert_eq!(element.child("y").unwrap().attribute("z"), Some("1"));
    }

    #[test]
    fn what_is_too_deep_or_cut_off_is_refused() {
        assert_eq!(Element::parse(&"<a>".repeat(1000)), Err(Malformed::TooLarge));
        assert_eq!(Element::parse("<a><b></b>"), Err(Malformed::Truncated));
        assert!(Element::parse("<a></b>").is_err());
        assert_eq!(
            Element::parse(&format!("<a {}>", "b='' ".repeat(MAX_ITEMS + 1))),
            Err(Malformed::TooLarge)
        );
        assert_eq!(
            Element::parse(&format!("<a>{}", "<b c=''/>".repeat(MAX_ITEMS / 2))),
            Err(Malformed::TooLarge)
        );
    }

    #[test]
    fn entities_of_a_document_mean_nothing() {
        let text = "<!DOCTYPE a [<!ENTITY b \"&c;&c;\"><!ENTITY c SYSTEM \"file:///etc/passwd\">]><a>1&b;&c;&#50;&lt;</a>";
        assert_eq!(Element::parse(text).unwrap().text, "12<");
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,200}") {
            let _outcome = Element::parse(&text);
        }

        #[test]
        fn no_mutation_of_an_answer_panics(cut in 0_usize..200, noise in ".{0,4}") {
            let text = "<s:E xmlns:s='u'><s:Body><G t='1'>a<![CDATA[b]]>&#65;</G></s:Body></s:E>";
            let (before, after) = text.split_at(cut.min(text.len()));
            let _outcome = Element::parse(&format!("{before}{noise}{after}"));
        }
    }
}

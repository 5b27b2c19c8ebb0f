//! References between objects: they hold a name, or nothing where only one object can be meant.

use foreshore_crds::{conditions::reasons, refs::LocalRef};

use crate::{
    object::{Kind, ObjectKey},
    problem::Problem,
};

use super::{Name, Scope, enumerate};

impl Scope<'_> {
    /// The object that a reference names.
    ///
    /// # Errors
    /// When it does not exist, or is not valid itself.
    pub(crate) fn find(
        &self,
        kind: Kind,
        namespace: &str,
        reference: &LocalRef,
        field: &str,
    ) -> Result<Name, Problem> {
        let name = Name::new(namespace, reference.name.as_str());
        let field = format!("{field}.name");
        if !self.declared.contains(&name.key(kind)) {
            let others: Vec<_> = self.names(kind, namespace).collect();
            return Err(Problem::new(
                reasons::NOT_FOUND,
                format!("no {kind} of that name in namespace {namespace}"),
            )
            .field(field)
            .found(&name.name)
            .allowed(enumerate(&others))
            .nearest(foreshore_record::nearest(
                &name.name,
                others.iter().map(|name| name.as_str()),
            )));
        }
        if !self.has(kind, &name) {
            let message = format!("{kind} {name} is not accepted itself");
            return Err(Problem::new(reasons::REF_NOT_ACCEPTED, message)
                .field(field)
                .found(&name.name));
        }
        Ok(name)
    }

    /// The object that a reference names, or the only one that `fits` where it was left out.
    ///
    /// # Errors
    /// When it does not exist, is not valid itself, or none or several would fit.
    pub(crate) fn find_or_only(
        &self,
        kind: Kind,
        namespace: &str,
        reference: Option<&LocalRef>,
        field: &str,
        fits: impl Fn(&Self, &Name) -> bool,
    ) -> Result<Name, Problem> {
        if let Some(reference) = reference {
            return self.find(kind, namespace, reference, field);
        }
        let candidates: Vec<_> = self
            .names(kind, namespace)
            .map(|name| Name::new(namespace, name))
            // What is not valid can't be asked, and might be the one that is meant.
            .filter(|name| !self.has(kind, name) || fits(self, name))
            .collect();
        match candidates.as_slice() {
            [only] if self.has(kind, only) => Ok(only.clone()),
            [only] => {
                let message = format!("left out, and {kind} {only} is not accepted itself");
                Err(Problem::new(reasons::REF_NOT_ACCEPTED, message).field(field))
            }
            [] => {
                let message = format!("left out, and namespace {namespace} has no {kind} that fits");
                Err(Problem::new(reasons::NOT_FOUND, message)
                    .field(field)
                    .found("nothing"))
            }
            several => {
                let message = format!("left out, and more than one {kind} fits");
                let names = enumerate(several.iter().map(|name| &name.name));
                Err(Problem::new(reasons::AMBIGUOUS, message)
                    .field(field)
                    .found("nothing")
                    .allowed(names))
            }
        }
    }

    /// Names of all objects of a kind in a namespace.
    fn names<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a String> {
        let first = ObjectKey::new(kind, namespace, "");
        self.declared
            .range(first..)
            .take_while(move |key| key.kind == kind && key.namespace == namespace)
            .map(|key| &key.name)
    }
}

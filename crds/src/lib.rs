//! API types of `foreshore.dev`, their rules and the judge that applies them.
//!
//! Pure: no runtime, no clock, no input or output. What a user writes is [`v1alpha1`]; what the operator
//! answers is in [`conditions`]. Fields that a user may leave out are `Option`s (the API server must not
//! fill in defaults, or every GitOps tool sees drift); what holds then is told by the `effective_*` methods.

// `KubeSchema` repeats each struct, `pub` and all, inside a function.
#![allow(unreachable_pub)]

pub mod conditions;
pub mod generate;
pub mod judge;
pub mod refs;
mod rules;
pub mod types;
pub mod v1alpha1;

pub use generate::{Error as GenerateError, MAX_MANIFEST, all_crds, crd, manifests, rules_page};

/// Group of all kinds.
pub const GROUP: &str = "foreshore.dev";
/// Version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all kinds.
pub const API_VERSION: &str = "foreshore.dev/v1alpha1";

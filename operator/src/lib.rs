//! The operator: manifests in, plans, workloads and status out.
//!
//! ```text
//! source ─► reconcile: judge ► dereference ► validate ► plan ─► control session ─► roles
//!                                                  └──────────► workloads ────────► roles
//! status index ◄─ what was observed ◄─ control session, workloads
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`source`] | where objects are declared: files, or the Kubernetes API |
//! | [`kubernetes`] | that API: manifests, Secrets, statuses, events, one leader |
//! | [`judged`] | manifests judged by themselves |
//! | [`reconcile`] | one pure pass over everything that is declared |
//! | `resources` | the kinds: dereference, validate, plan |
//! | [`plan`] | what each role is told |
//! | [`workloads`] | what runs: tasks or pods |
//! | [`facts`] | what running roles told about themselves |
//! | [`control`] | the operator's end of all control sessions |
//! | [`status`] | conditions, evidence, next steps |
//! | [`operator`] | the loop around it |
//! | [`check`] | judging without running |

mod accepted;
pub mod check;
pub mod control;
mod details;
pub mod facts;
pub mod judged;
pub mod kubernetes;
pub mod object;
pub mod operator;
pub mod packed;
pub mod plan;
pub mod platform;
pub mod problem;
pub mod reconcile;
mod resources;
pub mod role;
mod shards;
pub mod source;
pub mod status;
pub mod vault;
pub mod workloads;

pub use details::Details;
pub use object::{Kind, Meta, ObjectKey};
pub use operator::{Begin, Error, Handle, Operator, Options};
pub use platform::Platform;
pub use problem::Problem;
pub use role::RoleName;

//! A Git repository, and Argo CD that makes a cluster what it says.

mod argocd;
mod objects;
mod repository;

pub(crate) use argocd::{Argocd, MANAGER, summary};
pub(crate) use objects::{MADE, made, only_wrote, same, written};
pub(crate) use repository::Repository;

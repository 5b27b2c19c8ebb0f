//! What every back end does in the same way.

/// Runs functions that take a harness as tests over each back end.
macro_rules! over_all_back_ends {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test]
            fn $name() {
                super::$name(crate::tests::Harness::memory());
            })*
        }
        mod disk {
            $(#[test]
            fn $name() {
                super::$name(crate::tests::Harness::disk());
            })*
        }
        mod encrypted {
            $(#[test]
            fn $name() {
                super::$name(crate::tests::Harness::encrypted());
            })*
        }
    };
}

mod limits;
mod paths;
mod publishers;
mod queues;
mod state;

//! An accepted object in the type of its kind.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use serde_json::Value;

use super::{FieldPath, Problem, ProblemKind};
use crate::v1alpha1::{
    Asset, Broker, BrokerPolicy, Cloud, Connector, Dataflow, DataflowEndpoint, Device, Simulator,
};

macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        /// A kind of `foreshore.dev/v1alpha1`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("[`", stringify!($kind), "`].")] $kind,)+
        }

        /// All kinds, in the order in which a reader meets them.
        pub const KINDS: &[Kind] = &[$(Kind::$kind),+];

        /// An object in the type of its kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $(#[doc = concat!("A [`", stringify!($kind), "`].")] $kind(Box<$kind>),)+
        }

        impl Kind {
            /// The name, as a manifest writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)+ }
            }

            /// Reads an object that was judged.
            pub(super) fn read(self, document: Value) -> Result<Resource, Vec<Problem>> {
                // The schema admits nothing that the types can't hold (a test mutates every field); what it admitted
                // all the same is refused with the reader's words.
                let refuse = |error: serde_json::Error| vec![Problem::new(
                    FieldPath::root(), ProblemKind::Type, error.to_string(), "what the schema tells",
                )];
                Ok(match self {
                    $(Self::$kind => Resource::$kind(Box::new(serde_json::from_value(document).map_err(refuse)?)),)+
                })
            }
        }

        impl Resource {
            /// Its kind.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)+ }
            }

            /// Its metadata.
            #[must_use]
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => object.meta(),)+ }
            }

            /// Its metadata, to be completed.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => object.meta_mut(),)+ }
            }

            /// Its name.
            #[must_use]
            pub fn name(&self) -> String {
                match self { $(Self::$kind(object) => object.name_any(),)+ }
            }

            /// Its namespace; none before one was filled in.
            #[must_use]
            pub fn namespace(&self) -> Option<String> {
                match self { $(Self::$kind(object) => object.namespace(),)+ }
            }
        }

        $(impl From<$kind> for Resource {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })+
    };
}

kinds!(
    Device,
    Asset,
    Connector,
    Broker,
    BrokerPolicy,
    Dataflow,
    DataflowEndpoint,
    Simulator,
    Cloud
);

impl Kind {
    /// Reads the name of a kind.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        KINDS.iter().copied().find(|kind| kind.as_str() == name)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

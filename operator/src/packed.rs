//! Manifests and statuses as they are kept.

use std::{fmt, sync::Arc};

use foreshore_tls::Fingerprint;
use serde_json::Value;

/// A value as compact JSON: a tenth of what its tree takes, of which ten thousand are kept and few are read.
///
/// Its `Debug` output shows nothing of it, since it may hold secrets. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Arc<str>);

impl Packed {
    /// Packs a value, its members as they stand.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        Self(value.to_string().into())
    }

    /// Packs a value so that it is equal to that of an equal value.
    #[must_use]
    pub fn sorted(mut value: Value) -> Self {
        value.sort_all_objects();
        Self::of(&value)
    }

    /// Tells one from another.
    #[must_use]
    pub fn digest(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }

    /// Unpacks it.
    #[must_use]
    pub fn value(&self) -> Value {
        // It was a value when it was packed.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_values_are_equal_whatever_the_order_of_their_members() {
        let value = json!({"a": [{"x": 1, "y": null}], "b": "ü\n"});
        let packed = Packed::sorted(value.clone());
        assert_eq!(packed.value(), value);
        assert!(packed == Packed::sorted(json!({"b": "ü\n", "a": [{"y": null, "x": 1}]})));
        assert!(packed != Packed::sorted(json!({"b": "ü", "a": [{"y": null, "x": 1}]})));
        assert_eq!(
            format!("{packed:?}"),
            "35 bytes",
            "nothing is shown of what may be secret"
        );
    }
}

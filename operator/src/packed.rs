//! Manifests and statuses as they are kept.

use std::{fmt, sync::Arc};

use foreshore_tls::Fingerprint;
use serde_json::Value;

/// A value as compressed JSON: a thirtieth of what its tree takes, of which ten thousand are kept and few are read.
///
/// Its `Debug` output shows nothing of it, since it may hold secrets. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Arc<[u8]>);

impl Packed {
    /// Packs a value, its members as they stand.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        Self(lz4_flex::compress_prepend_size(value.to_string().as_bytes()).into())
    }

    /// Unpacks it.
    #[must_use]
    pub fn value(&self) -> Value {
        // It was a value when it was packed.
        let text = lz4_flex::decompress_size_prepended(&self.0).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

/// Tells a value from others that are not equal, whatever the order of its members.
#[must_use]
pub fn digest(mut value: Value) -> Fingerprint {
    value.sort_all_objects();
    Fingerprint::of(value.to_string().as_bytes())
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
    fn a_value_comes_out_as_it_went_in() {
        let value = json!({"a": [{"x": 1, "y": null}], "b": "ü\n", "c": 0.1, "d": u64::MAX});
        let packed = Packed::of(&value);
        assert_eq!(packed.value().to_string(), value.to_string());
        assert!(packed == Packed::of(&value));
        assert!(packed != Packed::of(&json!({"a": []})));
        let shown = format!("{packed:?}");
        assert!(
            shown.ends_with(" bytes"),
            "nothing is shown of what may be secret: {shown}"
        );
    }

    #[test]
    fn equal_values_have_one_digest_whatever_the_order_of_their_members() {
        let value = digest(json!({"a": [{"x": 1, "y": null}], "b": "ü"}));
        assert_eq!(value, digest(json!({"b": "ü", "a": [{"y": null, "x": 1}]})));
        assert_ne!(value, digest(json!({"b": "u", "a": [{"y": null, "x": 1}]})));
    }
}

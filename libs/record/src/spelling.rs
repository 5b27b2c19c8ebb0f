//! The name that somebody probably meant.

/// Names are short; longer ones are not worth the quadratic comparison.
const MAX_LENGTH: usize = 253;

/// The candidate that a mistyped word most likely meant: at most a third of its letters differ, whatever their case.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_LENGTH {
        return None;
    }
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_LENGTH)
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&folded, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_forgiven_and_no_more() {
        let fields = ["address", "authentication", "enabled", "opcua"];
        assert_eq!(nearest("adress", fields), Some("address"));
        assert_eq!(nearest("Authentification", fields), Some("authentication"));
        assert_eq!(nearest("OPCUA", fields), Some("opcua"));
        assert_eq!(nearest("polling", fields), None);
        let kinds = ["Device", "Dataflow", "DataflowEndpoint", "Asset"];
        assert_eq!(nearest("Devise", kinds), Some("Device"));
        assert_eq!(nearest("dataFlow", kinds), Some("Dataflow"));
        assert_eq!(nearest("Deployment", kinds), None);
        assert_eq!(nearest("", kinds), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), kinds), None);
    }
}

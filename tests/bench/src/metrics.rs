//! What a role tells under `/metrics`.

use anyhow::{Context, Result, bail};

/// A cumulative histogram: how many values were at most so much, by that much.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Reads a histogram from OpenMetrics' text form; series that differ in other labels are added up.
    pub(crate) fn read(text: &str, name: &str) -> Result<Self> {
        let prefix = format!("{name}_bucket{{");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix(&prefix)) {
            let (labels, count) = line.split_once("} ").context("no value in a metric")?;
            let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\""));
            let bound = bound.context("no bound in a metric")?.trim_end_matches('"');
            let (bound, count): (f64, f64) = (bound.replace("+Inf", "inf").parse()?, count.parse()?);
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Self { buckets })
    }

    /// What was added since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let same = earlier.buckets.iter().find(|(known, _)| *known == bound);
            same.map_or(0.0, |(_, count)| *count)
        };
        let buckets = self
            .buckets
            .iter()
            .map(|(bound, count)| (*bound, count - before(*bound)));
        Self {
            buckets: buckets.collect(),
        }
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// A percentile, in even parts between the bounds around it, as Prometheus estimates it.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let wanted = self.count() * share;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= wanted && *count > below {
                let part = (wanted - below) / (count - below);
                return if bound.is_finite() {
                    lower + (bound - lower) * part
                } else {
                    lower
                };
            }
            (lower, below) = (*bound, *count);
        }
        f64::NAN
    }
}

/// Reads a counter from OpenMetrics' text form; series that differ in labels are added up.
pub(crate) fn counter(text: &str, name: &str) -> Result<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest,
        };
        rest.strip_prefix(' ')
    });
    let values: Vec<u64> = values
        .map(|value| value.parse().with_context(|| format!("{name} {value}")))
        .collect::<Result<_>>()?;
    if values.is_empty() {
        bail!("there is no metric {name}");
    }
    Ok(values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_with_labels_and_without() {
        let text =
            "# TYPE a counter\na_total 3\na_total_more 7\nb_total{task=\"x y\"} 1\nb_total{task=\"}\"} 2\n";
        assert_eq!(counter(text, "a_total").unwrap(), 3);
        assert_eq!(counter(text, "b_total").unwrap(), 3);
        assert!(counter(text, "c_total").is_err());
    }

    #[test]
    fn a_histogram_is_read_and_subtracted() {
        let text = |ten, hundred, all| {
            format!(
                "# TYPE age histogram\nage_bucket{{le=\"10.0\",lane=\"live\"}} {ten}\n\
                 age_bucket{{le=\"100.0\",lane=\"live\"}} {hundred}\nage_bucket{{le=\"+Inf\",lane=\"live\"}} {all}\n\
                 age_bucket{{le=\"10.0\",lane=\"alarm\"}} 1\nage_count{{lane=\"live\"}} {all}\n"
            )
        };
        let before = Histogram::read(&text(5, 5, 5), "age").unwrap();
        assert_eq!(before.buckets[0], (10.0, 6.0));
        let added = Histogram::read(&text(5, 105, 105), "age").unwrap().since(&before);
        assert_eq!(added.count(), 100.0);
        assert_eq!(added.percentile(0.5), 55.0);
        let beyond = Histogram::read(&text(0, 0, 10), "age").unwrap();
        assert_eq!(beyond.percentile(0.99), 100.0);
        assert!(Histogram::default().percentile(0.5).is_nan());
    }
}

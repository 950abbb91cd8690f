//! The `Server-Timing` header of an answer: where the server says its time went. What the stages mean is not
//! known here.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::HeaderName;

static NAME: HeaderName = HeaderName::from_static("server-timing");
/// A longer header is none of Manta's.
const BYTES_MAX: usize = 2048;
const METRICS_MAX: usize = 32;
/// Digits before the point: some eleven days.
const WHOLE_MS_DIGITS_MAX: usize = 9;
/// Digits after it: nanoseconds.
const PART_MS_DIGITS_MAX: usize = 6;

/// What a server said of the time it took, in its order. A subset of the W3C's Server Timing: a metric has at
/// most a duration and a description of one word. A stage that was gone through twice occurs twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTiming(Vec<Metric>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Metric {
    name: String,
    duration: Option<Duration>,
    description: Option<String>,
}

impl ServerTiming {
    /// Of the header's value, as in `pool;desc="hit", adopt;dur=1.9, total;dur=2.6`; durations are in
    /// milliseconds. `None` of anything that is not exactly this.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        if value.len() > BYTES_MAX {
            return None;
        }
        let metrics: Vec<_> = value.split(',').map(Metric::parse).collect::<Option<_>>()?;
        (metrics.len() <= METRICS_MAX).then_some(Self(metrics))
    }

    /// Of an answer. `None` also if a proxy added one of its own: whose is whose cannot be told.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&NAME).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.to_str().ok()?),
            _ => None,
        }
    }

    /// The stages that have a duration, in the server's order.
    pub fn stages(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().filter_map(|metric| Some((metric.name.as_str(), metric.duration?)))
    }

    /// The description of a metric, the first of that name, if it is there and has one.
    #[must_use]
    pub fn description(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|metric| metric.name == name)?.description.as_deref()
    }
}

impl Metric {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let name = word(parts.next()?)?;
        let mut metric = Self { name, duration: None, description: None };
        for part in parts {
            match part.split_once('=')? {
                ("dur", value) if metric.duration.is_none() => metric.duration = Some(milliseconds(value)?),
                ("desc", value) if metric.description.is_none() => {
                    let quoted = value.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
                    metric.description = Some(word(quoted.unwrap_or(Some(value))?)?);
                }
                _ => return None,
            }
        }
        Some(metric)
    }
}

fn word(text: &str) -> Option<String> {
    let is_word =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    is_word.then(|| text.to_owned())
}

fn milliseconds(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.').map_or((text, None), |(whole, part)| (whole, Some(part)));
    let digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole, WHOLE_MS_DIGITS_MAX) || part.is_some_and(|part| !digits(part, PART_MS_DIGITS_MAX)) {
        return None;
    }
    let nanoseconds: u64 = format!("{:0<PART_MS_DIGITS_MAX$}", part.unwrap_or_default()).parse().ok()?;
    Some(Duration::from_millis(whole.parse().ok()?) + Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const MANTAS: &str = r#"pool;desc="hit", claim;dur=0.031, resume;dur=0.4, adopt;dur=1.9, total;dur=2.6"#;

    #[test]
    fn stages_come_in_the_servers_order_in_nanoseconds() {
        let timing = ServerTiming::parse(MANTAS).unwrap();
        let stages: Vec<_> = timing.stages().map(|(name, took)| (name, took.as_nanos())).collect();
        let expected = [("claim", 31_000), ("resume", 400_000), ("adopt", 1_900_000), ("total", 2_600_000)];
        assert_eq!(stages, expected);
        assert_eq!(timing.description("pool"), Some("hit"));
        assert_eq!((timing.description("claim"), timing.description("nothing")), (None, None));
        let timing = ServerTiming::parse("a;desc=b;dur=12,c").unwrap();
        assert_eq!(timing.stages().collect::<Vec<_>>(), [("a", Duration::from_millis(12))]);
        assert_eq!(timing.description("a"), Some("b"));
    }

    #[test]
    fn what_is_not_exactly_that_is_nothing() {
        let long = ["a;dur=1, ", &" ".repeat(BYTES_MAX)].concat();
        let many = (0..=METRICS_MAX).map(|n| format!("m{n};dur=1")).collect::<Vec<_>>().join(", ");
        for wrong in [
            "",
            ",",
            "a;",
            "a;dur",
            "a;dur=",
            "a;dur=-1",
            "a;dur=1e3",
            "a;dur=.5",
            "a;dur=1.",
            "a;dur=NaN",
            "a;dur=1.0000001",
            "a;dur=1234567890",
            "a;dur=\"1\"",
            "a;dur=1;dur=2",
            "a;desc=\"b",
            "a;desc=b\"",
            "a;desc=\"\"",
            "a;desc=\"b, c\"",
            "a;desc=\"\u{e9}\"",
            "a b;dur=1",
            "a;other=1",
            "a;dur=1,",
            &long,
            &many,
        ] {
            assert_eq!(ServerTiming::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_one_header_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(ServerTiming::of(&headers), None);
        headers.append(&NAME, HeaderValue::from_static(MANTAS));
        assert!(ServerTiming::of(&headers).is_some());
        headers.append(&NAME, HeaderValue::from_static("cdn;dur=1"));
        assert_eq!(ServerTiming::of(&headers), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z;=,.\" 0-9]{0,60}|\\PC{0,40}") {
            if let Some(timing) = ServerTiming::parse(&text) {
                prop_assert!(timing.0.len() <= METRICS_MAX);
                prop_assert!(timing.stages().all(|(_, took)| took < Duration::from_secs(1_000_001)));
            }
        }

        #[test]
        fn a_duration_is_read_to_the_nanosecond(ns in 0..1_000_000_000_000_u64) {
            let timing = ServerTiming::parse(&format!("a;dur={}.{:06}", ns / 1_000_000, ns % 1_000_000)).unwrap();
            prop_assert_eq!(timing.stages().next(), Some(("a", Duration::from_nanos(ns))));
        }
    }
}

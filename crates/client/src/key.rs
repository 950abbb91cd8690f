//! An API key, which shows itself to the server alone.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use hyper::header::{HeaderValue, InvalidHeaderValue};

/// What the server lets one in by. Neither printed nor serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The value of `Authorization`.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Takes any text: an error about one would be printed with the key in it.
impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.trim().to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_printed() {
        let key: ApiKey = " manta_secret\n".parse().unwrap();
        let bearer = key.bearer().unwrap();
        assert_eq!(bearer, "Bearer manta_secret");
        let printed = format!("{key:?} {bearer:?}");
        assert!(!printed.contains("secret"), "{printed}");
        "two\nlines".parse::<ApiKey>().unwrap().bearer().unwrap_err();
    }
}

//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) in thousandths, exactly: what the scheduler compares, we compare.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::{Deserialize, Deserializer, de::Error as _};

/// A non-negative amount in thousandths of its unit, rounded up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quantity(u128);

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity")]
pub struct NotAQuantity(pub String);

impl Quantity {
    /// From whole units.
    pub const fn bytes(value: u64) -> Self {
        Self(value as u128 * 1000)
    }

    /// From thousandths.
    pub const fn millis(value: u64) -> Self {
        Self(value as u128)
    }

    /// Whole units, rounded up as Kubernetes' `Value()`.
    pub fn value(self) -> u64 {
        u64::try_from(self.0.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// Thousandths, as Kubernetes' `MilliValue()`.
    pub fn milli_value(self) -> u64 {
        u64::try_from(self.0).unwrap_or(u64::MAX)
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, not below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Reads `100m`, `1.5Gi`, `12E`, `1e3`.
    pub fn parse(text: &str) -> Result<Self, NotAQuantity> {
        let bad = || NotAQuantity(text.into());
        let split = text
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+'))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let number = number.strip_prefix('+').unwrap_or(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 24 || whole.len() > 24 {
            return Err(bad());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
        // value = digits * multiplier * 10^exponent / 10^fraction, in thousandths.
        let (multiplier, exponent): (u128, i32) = match suffix {
            "" => (1, 0),
            "n" => (1, -9),
            "u" => (1, -6),
            "m" => (1, -3),
            "k" => (1, 3),
            "M" => (1, 6),
            "G" => (1, 9),
            "T" => (1, 12),
            "P" => (1, 15),
            "E" => (1, 18),
            "Ki" => (1 << 10, 0),
            "Mi" => (1 << 20, 0),
            "Gi" => (1 << 30, 0),
            "Ti" => (1 << 40, 0),
            "Pi" => (1 << 50, 0),
            "Ei" => (1 << 60, 0),
            other => (
                1,
                other
                    .strip_prefix(['e', 'E'])
                    .and_then(|e| e.parse().ok())
                    .filter(|e: &i32| e.abs() <= 18)
                    .ok_or_else(bad)?,
            ),
        };
        let shift = exponent + 3 - i32::try_from(fraction.len()).expect("at most 24 digits");
        let value = digits.saturating_mul(multiplier);
        Ok(Self(if shift >= 0 {
            value.saturating_mul(10u128.saturating_pow(shift.unsigned_abs()))
        } else {
            value.div_ceil(10u128.pow(shift.unsigned_abs()))
        }))
    }

    /// Reads a quantity that the API server has checked; one that is not is zero.
    pub fn of(quantity: &ApiQuantity) -> Self {
        Self::parse(&quantity.0).unwrap_or_default()
    }

    /// For status fields.
    pub fn to_api(self) -> ApiQuantity {
        ApiQuantity(self.to_string())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_multiple_of(1000) {
            return write!(f, "{}m", self.0);
        }
        let units = self.0 / 1000;
        for (shift, suffix) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if units != 0 && units.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", units >> shift);
            }
        }
        write!(f, "{units}")
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, Self::bytes, Self::parse)
    }
}

/// Reads what may be written as a number or as text.
pub(crate) fn number_or_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    number: impl FnOnce(u64) -> T,
    text: impl FnOnce(&str) -> Result<T, NotAQuantity>,
) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }
    match Form::deserialize(deserializer)? {
        Form::Number(value) => Ok(number(value)),
        Form::Text(value) => text(&value).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_mean_what_kubernetes_means() {
        for (text, millis) in [
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1.5", 1500),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("2E2", 200_000),
            ("5E", 5_000_000_000_000_000_000_000),
            ("1u", 1),
            (".5", 500),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().0, millis, "{text}");
        }
        for text in ["", "x", "1.2.3", "-1", "1Qi", "1 Gi", "1e999", "."] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_print_as_they_are_read() {
        for text in ["0", "100m", "1500m", "2", "1Gi", "1536Mi", "1000", "3Ki"] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), text);
        }
    }
}

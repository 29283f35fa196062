//! Variables that layers set, and which of the host's they keep out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_default;

/// How a variable joins what the host or an earlier image set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnvMerge {
    /// This value wins.
    #[default]
    Replace,
    /// This value, `:`, the earlier one.
    Prepend,
    /// The earlier one, `:`, this value.
    Append,
}

/// A variable that a layer sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// How it joins earlier values.
    #[serde(default, skip_serializing_if = "is_default")]
    pub merge: EnvMerge,
}

/// Whether a variable of the host is visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnvMode {
    /// As the enclosing rule says: a variable's as the layer's, the layer's as the isolation of `/`.
    #[default]
    Inherit,
    /// The host's value is not visible.
    Full,
    /// The host's value is visible where no layer sets one.
    WriteCopy,
}

/// Which of the host's variables the application sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvIsolation {
    /// Of all that [`Self::variables`] does not name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: EnvMode,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, EnvMode>,
}

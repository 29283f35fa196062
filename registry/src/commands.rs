//! What the program does besides serving, and what it tells those that started it.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod health;
pub(crate) mod maintain;
pub(crate) mod manual;
pub(crate) mod secret_files;
pub(crate) mod supervisor;

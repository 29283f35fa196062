//! One file a command: the arguments, whose doc comments are the help text, and what is done.

pub mod completions;
pub mod config_command;
pub mod doctor;
pub mod export;
pub mod gc;
pub mod images;
pub mod import;
pub mod inspect;
pub mod logs;
pub mod profile;
pub mod pull;
pub mod push;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod sessions;
pub mod stats;
pub mod trace;
pub mod verify;
pub mod version;

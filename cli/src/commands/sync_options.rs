//! Options of a launch about saving the state that it ends in.

use crate::states::sharing::Visibility;

/// Whether the state is saved to the registry at the end.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SyncOptions {
    /// Save the state to the registry when the application ends, whatever its exit code.
    #[arg(long, overrides_with = "disable_sync")]
    pub enable_sync: bool,
    /// Do not: the default.
    #[arg(long, overrides_with = "enable_sync")]
    pub disable_sync: bool,
    /// With --enable-sync: everyone who may use the registry can go on from the state.
    #[arg(long, requires = "enable_sync", overrides_with = "private")]
    pub public: bool,
    /// With --enable-sync: only whoever has the same token can; the default.
    #[arg(long, requires = "enable_sync", overrides_with = "public")]
    pub private: bool,
}

impl SyncOptions {
    /// Where the state is saved, if it is.
    pub fn share(&self) -> Option<Visibility> {
        let visibility = if self.public { Visibility::Public } else { Visibility::Private };
        (self.enable_sync && !self.disable_sync).then_some(visibility)
    }
}

//! What commands share: settings, output, and the store, registry and runtime, each opened when first needed.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use anyhow::{Context, Result};
use client_store::remote::{self, Registry, RegistryOptions};
use client_store::{Store, StoreOptions};

use crate::config::{Authority, Settings};
use crate::containers::Containers;
use crate::detach::Background;
use crate::output::Output;

/// The state of one command.
pub struct App {
    /// What is configured.
    pub settings: Settings,
    /// Where and how results are printed.
    pub output: Output,
    /// Whether a launch says what it does.
    pub is_verbose: bool,
    store: OnceCell<Store>,
    registry: OnceCell<Registry>,
    runtime: OnceCell<tokio::runtime::Runtime>,
    background: Cell<Option<Background>>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.settings).field("output", &self.output).finish_non_exhaustive()
    }
}

impl App {
    /// An app in which nothing is open yet.
    pub fn new(settings: Settings, output: Output, background: Option<Background>) -> Self {
        Self {
            settings,
            output,
            is_verbose: false,
            store: OnceCell::new(),
            registry: OnceCell::new(),
            runtime: OnceCell::new(),
            background: Cell::new(background),
        }
    }

    /// What makes this the second process of a detached run, once.
    pub fn take_background(&self) -> Option<Background> {
        self.background.take()
    }

    /// The container that the first process of a detached run chose for this one, if this is the second.
    pub fn background_container(&self) -> Option<String> {
        let background = self.background.take();
        let id = background.as_ref().map(|background| background.container_id().to_owned());
        self.background.set(background);
        id
    }

    /// Ends without waiting for requests that no one waits for.
    pub fn close(self) {
        drop(self.store);
        if let Some(link) = self.registry.get().and_then(Registry::measured_link)
            && let Err(error) = remote::remember_link(&self.settings.home, &self.settings.hub, link)
        {
            tracing::debug!(%error, "what was measured of the link is not remembered");
        }
        if let Some(runtime) = self.runtime.into_inner() {
            runtime.shutdown_background();
        }
    }

    /// The local store.
    pub fn store(&self) -> Result<Store> {
        let open = || {
            let options = StoreOptions { cap_bytes: self.settings.cache_size, ..StoreOptions::default() };
            Store::open(&self.settings.home, options).with_context(|| format!("the store at {} cannot be opened", self.settings.home.display()))
        };
        get_or_try_init(&self.store, open).cloned()
    }

    /// The configured registry. Makes no request.
    pub fn registry(&self) -> Result<Registry> {
        let open = || {
            let (token, login) = match self.settings.authority()? {
                Authority::None => (None, None),
                Authority::Token(token) => (Some(token), None),
                Authority::Login { secret, .. } => (None, Some(secret)),
            };
            let options = RegistryOptions {
                token,
                login,
                renew_token: Some(Arc::new(|| Settings::token_of_file().or_else(Settings::token))),
                ca_file: self.settings.ca_file.clone(),
                link: remote::recall_link(&self.settings.home, &self.settings.hub),
                lanes: self.settings.lanes,
                cached_launch: self.settings.cached_launch,
                ..RegistryOptions::default()
            };
            Registry::new(&self.settings.hub, options).with_context(|| format!("the registry {} cannot be used", self.settings.hub))
        };
        get_or_try_init(&self.registry, open).cloned()
    }

    /// Where requests run. Starts threads.
    pub fn runtime(&self) -> Result<&tokio::runtime::Runtime> {
        let start = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("threads cannot be started");
        get_or_try_init(&self.runtime, start)
    }

    /// Waits for a request.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        Ok(self.runtime()?.block_on(future))
    }

    /// The containers.
    pub fn containers(&self) -> Containers {
        Containers::new(&self.settings.home)
    }
}

fn get_or_try_init<T>(cell: &OnceCell<T>, init: impl FnOnce() -> Result<T>) -> Result<&T> {
    if cell.get().is_none() {
        let _ = cell.set(init()?);
    }
    cell.get().context("it was just set")
}

//! What registries of tests keep their data in: an SQLite file and a folder; or, if `TURBO_TEST_BACKEND` is
//! `postgres-s3`, a PostgreSQL database and an S3 prefix that stand for the data folder, so that a registry which starts
//! again in the same folder finds its data again. One server of each kind a test binary.

use std::path::Path;
use std::sync::OnceLock;

use registry::{Config, S3Options};

use super::servers::{ACCESS_KEY, Postgres, SECRET_KEY, Seaweed};

/// The bucket of all tests.
pub const BUCKET: &str = "turbo";

/// The servers of this process.
#[derive(Debug)]
pub struct Servers {
    pub postgres: Postgres,
    pub seaweed: Seaweed,
}

/// Whether data is kept in files of the data folder.
pub fn is_local() -> bool {
    match std::env::var("TURBO_TEST_BACKEND") {
        Ok(name) if name == "postgres-s3" => false,
        Ok(name) => panic!("TURBO_TEST_BACKEND is `{name}`: it can be `postgres-s3`"),
        Err(_) => true,
    }
}

impl Servers {
    /// New ones; why not if this machine lacks something.
    pub fn start() -> Result<Self, String> {
        let postgres = Postgres::start()?;
        Ok(Self { postgres, seaweed: Seaweed::start()? })
    }

    /// Settings of a registry whose data is called `name`; `data` is a folder of its own.
    pub async fn config(&self, data: &Path, name: &str) -> Config {
        let mut config = Config::new(data);
        self.configure(&mut config, name).await;
        config
    }

    /// Moves what a registry keeps to these servers, under a name.
    pub async fn configure(&self, config: &mut Config, name: &str) {
        config.database_url = Some(self.postgres.database(name).await);
        config.storage_url = Some(format!("s3://{BUCKET}/{name}"));
        config.s3 = self.s3();
        // A test binary runs many at a time.
        config.database_connections = 8;
    }

    /// How to reach the object store.
    pub fn s3(&self) -> S3Options {
        S3Options {
            endpoint: Some(self.seaweed.endpoint()),
            region: None,
            path_style: None,
            access_key_id: Some(ACCESS_KEY.into()),
            secret_access_key: Some(SECRET_KEY.into()),
        }
    }
}

/// Applies `TURBO_TEST_BACKEND` to a configuration that says nothing about it.
pub async fn apply(config: &mut Config) {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    if is_local() || config.database_url.is_some() {
        return;
    }
    // The servers of a static are not dropped: they end with the process, as their input does.
    let servers = SERVERS.get_or_init(|| Servers::start().expect("TURBO_TEST_BACKEND=postgres-s3 needs both servers"));
    let name = format!("t{}", &layer_format::Digest::of(config.data.as_os_str().as_encoded_bytes()).to_hex()[..20]);
    servers.configure(config, &name).await;
}

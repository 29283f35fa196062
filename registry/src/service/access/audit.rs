//! The audit log: every change and every refusal, with who, what, from where and when. Nothing secret gets into it: targets are
//! paths without their queries.
//!
//! Entries of management (users, keys, grants) are written in the transaction of the change. All others are written in batches,
//! some tenths of a second later: a change waits for a place in the queue, a refusal does not, so that a flood of them holds up
//! no one; how many were left out is then an entry of its own. A crash may lose what was still in the queue.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::db::audit_entry::{AuditRow, audit_delete_before, audit_insert};
use crate::db::robot_key::{robot_key_expire, robot_key_touch};
use crate::db::{Db, DbError, commit, now_ms};

/// Entries that may wait to be written.
const QUEUE: usize = 4096;
/// Entries of one transaction.
const BATCH: usize = 512;
/// How long entries gather.
const GATHER: Duration = Duration::from_millis(200);
/// Attempts to write a batch before it is given up.
const ATTEMPTS: u32 = 5;
/// How often old entries and expired keys are looked for.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
/// Longest text of a field, in characters.
const MAX_TEXT: usize = 512;
const DAY_MS: i64 = 24 * 3600 * 1000;

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// Who does something, and from where.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// As [`super::policy::Caller::shown`], or `console`.
    pub(crate) who: String,
    pub(crate) address: Option<IpAddr>,
    /// The request's id.
    pub(crate) request: Option<String>,
}

impl Actor {
    /// Whoever can run programs on the server.
    pub(crate) fn console() -> Self {
        Self { who: "console".into(), address: None, request: None }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Refused,
}

/// An entry of now.
pub(crate) fn entry(actor: &Actor, action: &str, target: &str, outcome: Outcome, detail: Option<String>) -> AuditRow {
    let at = now_ms();
    let clip = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect() };
    AuditRow {
        id: format!("{:012x}{:08x}{:08x}", at.max(0), SEQUENCE.fetch_add(1, Ordering::Relaxed), rand::random::<u32>()),
        at,
        who: clip(&actor.who),
        action: action.to_owned(),
        target: clip(target),
        outcome: match outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
        }
        .to_owned(),
        detail: detail.as_deref().map(clip),
        address: actor.address.map(|address| address.to_string()),
        request: actor.request.clone(),
    }
}

/// What waits to be written besides entries.
#[derive(Debug, Default)]
struct Waiting {
    left_out: AtomicU64,
    /// Keys that were used, and when.
    used: Mutex<HashMap<String, i64>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Audit {
    sender: Mutex<Option<mpsc::Sender<AuditRow>>>,
    waiting: Arc<Waiting>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Starts to write; entries are kept for `days`.
    pub(crate) fn start(db: Db, days: u32) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Waiting::default());
        let writer = tokio::spawn(write(db, receiver, Arc::clone(&waiting), days));
        Self { sender: Mutex::new(Some(sender)), waiting, writer: Mutex::new(Some(writer)) }
    }

    fn sender(&self) -> Option<mpsc::Sender<AuditRow>> {
        self.sender.lock().clone()
    }

    /// Notes a change that was made. Waits for a place in the queue.
    pub(crate) async fn change(&self, entry: AuditRow) {
        if let Some(sender) = self.sender() {
            let _ = sender.send(entry).await;
        }
    }

    /// Notes a refusal, if there is a place in the queue.
    pub(crate) fn refusal(&self, entry: AuditRow) {
        if self.sender().is_none_or(|sender| sender.try_send(entry).is_err()) {
            self.waiting.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that a key was used.
    pub(crate) fn used(&self, key: &str, at: i64) {
        self.waiting.used.lock().insert(key.to_owned(), at);
    }

    /// Writes what is left, and ends.
    pub(crate) async fn close(&self) {
        drop(self.sender.lock().take());
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            let _ = writer.await;
        }
    }
}

async fn write(db: Db, mut receiver: mpsc::Receiver<AuditRow>, waiting: Arc<Waiting>, days: u32) {
    let mut clean = tokio::time::interval(CLEAN_EVERY);
    let mut notes = tokio::time::interval(Duration::from_secs(10));
    loop {
        let mut batch = Vec::new();
        let is_over = tokio::select! {
            count = receiver.recv_many(&mut batch, BATCH) => count == 0,
            _ = clean.tick() => {
                if let Err(error) = remove_old(&db, days).await {
                    tracing::warn!(error = crate::chain(&error), "old audit entries were not removed");
                }
                false
            }
            _ = notes.tick() => false,
        };
        if !batch.is_empty() && batch.len() < BATCH {
            tokio::time::sleep(GATHER).await;
            while batch.len() < BATCH
                && let Ok(entry) = receiver.try_recv()
            {
                batch.push(entry);
            }
        }
        let left_out = waiting.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let actor = Actor::console();
            batch.push(entry(&actor, "refusals_left_out", "audit", Outcome::Refused, Some(format!("{left_out} more were refused"))));
        }
        let used = std::mem::take(&mut *waiting.used.lock());
        if !batch.is_empty() || !used.is_empty() {
            insist(&db, &batch, &used).await;
        }
        if is_over {
            return;
        }
    }
}

async fn insist(db: &Db, batch: &[AuditRow], used: &HashMap<String, i64>) {
    for attempt in 1..=ATTEMPTS {
        match write_batch(db, batch, used).await {
            Ok(()) => return,
            Err(error) if attempt == ATTEMPTS => {
                tracing::error!(error = crate::chain(&error), entries = batch.len(), "audit entries could not be written and are lost");
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn write_batch(db: &Db, batch: &[AuditRow], used: &HashMap<String, i64>) -> Result<(), DbError> {
    let mut transaction = db.begin().await?;
    audit_insert(&mut transaction, batch).await?;
    // In one order by all, so that two servers do not wait for each other in a circle.
    let used: std::collections::BTreeMap<_, _> = used.iter().collect();
    for (key, at) in used {
        robot_key_touch(&mut transaction, key, *at).await?;
    }
    commit(transaction).await
}

async fn remove_old(db: &Db, days: u32) -> Result<(), DbError> {
    let now = now_ms();
    let mut transaction = db.begin().await?;
    audit_delete_before(&mut transaction, now - i64::from(days) * DAY_MS).await?;
    // A day later than they end, so that lists still show why something does not work any more.
    robot_key_expire(&mut transaction, now - DAY_MS).await?;
    commit(transaction).await
}

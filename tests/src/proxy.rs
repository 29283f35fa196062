//! A TCP proxy in front of the registry that can be cut, slowed, made to truncate or refuse, and to damage what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The proxy. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: String,
    cut: AtomicBool,
    stopped: AtomicBool,
    /// Bytes towards the client until all connections are cut; negative: no limit.
    budget: AtomicI64,
    /// One bit of the answer is flipped when this many bytes have passed; negative: never.
    damage_at: AtomicI64,
    /// Bytes that a connection may carry towards the client before it is closed; 0: no limit.
    truncate_at: AtomicU64,
    /// Connections that are answered with 503 instead of being passed on.
    refuse: AtomicU64,
    /// Bytes a second towards the client, over all connections; 0: no limit.
    rate: AtomicU64,
    /// When the line is free again, as the rate has it.
    free_at: Mutex<Option<Instant>>,
    delay_ms: AtomicU64,
    down_bytes: AtomicU64,
    up_bytes: AtomicU64,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to this address.
    pub fn to(target: &str) -> Self {
        Self::between(TcpListener::bind("127.0.0.1:0").expect("loopback"), target)
    }

    /// A proxy from this listener, which may be in another network namespace, to this address.
    pub fn between(listener: TcpListener, target: &str) -> Self {
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            target: target.into(),
            cut: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            budget: AtomicI64::new(-1),
            damage_at: AtomicI64::new(-1),
            truncate_at: AtomicU64::new(0),
            refuse: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            free_at: Mutex::default(),
            delay_ms: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                serve(&shared, client);
            }
        });
        Self { address, state }
    }

    /// `http://ADDRESS:PORT` of the listener.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes all connections and refuses new ones, until [`Proxy::mend`].
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        close_all(&self.state);
    }

    /// Lets connections through again, without limit and damage.
    pub fn mend(&self) {
        self.state.budget.store(-1, Ordering::SeqCst);
        self.state.damage_at.store(-1, Ordering::SeqCst);
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// Cuts once this many more bytes have gone to the client.
    pub fn cut_after(&self, bytes: i64) {
        self.state.budget.store(bytes, Ordering::SeqCst);
    }

    /// Flips a bit in the byte that goes to the client after this many more.
    pub fn damage_after(&self, bytes: i64) {
        self.state.damage_at.store(bytes, Ordering::SeqCst);
    }

    /// Delays each piece that goes to the client.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Closes each connection, in good order, when it has carried this many bytes to the client; 0 is no limit.
    pub fn truncate_answers_at(&self, bytes: u64) {
        self.state.truncate_at.store(bytes, Ordering::SeqCst);
    }

    /// Cuts the open connections, and answers the next so many with 503, to come back after a second.
    pub fn refuse(&self, connections: u64) {
        self.state.refuse.store(connections, Ordering::SeqCst);
        close_all(&self.state);
    }

    /// Connections that are still to be refused.
    pub fn refusals_left(&self) -> u64 {
        self.state.refuse.load(Ordering::SeqCst)
    }

    /// Limits what goes to the client to so many bytes a second; 0 is no limit.
    pub fn limit_rate(&self, bytes_per_s: u64) {
        self.state.rate.store(bytes_per_s, Ordering::SeqCst);
    }

    /// Bytes that went to the client so far.
    pub fn down_bytes(&self) -> u64 {
        self.state.down_bytes.load(Ordering::SeqCst)
    }

    /// Bytes that went to the registry so far.
    pub fn up_bytes(&self) -> u64 {
        self.state.up_bytes.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        close_all(&self.state);
        let _ = TcpStream::connect(&self.address);
    }
}

fn close_all(state: &State) {
    for stream in state.open.lock().expect("no panic").drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn serve(state: &Arc<State>, mut client: TcpStream) {
    if state.cut.load(Ordering::SeqCst) {
        return;
    }
    if state.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        // The request is read first: a connection that is closed over unread data is reset, and the answer lost.
        let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
        let _ = client.read(&mut [0; 64 * 1024]);
        let _ = client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    let Ok(server) = TcpStream::connect(&state.target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    state.connections.fetch_add(1, Ordering::SeqCst);
    let mut open = state.open.lock().expect("no panic");
    for stream in [&client, &server] {
        open.extend(stream.try_clone());
    }
    drop(open);
    let (Ok(client_in), Ok(server_out)) = (client.try_clone(), server.try_clone()) else { return };
    let up = Arc::clone(state);
    std::thread::spawn(move || pump(client_in, server_out, |bytes| up.up_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst) < u64::MAX));
    let down = Arc::clone(state);
    let mut carried = 0;
    std::thread::spawn(move || {
        pump(server, client, |bytes| {
            carried += bytes.len() as u64;
            let limit = down.truncate_at.load(Ordering::SeqCst);
            down.towards_client(bytes) && (limit == 0 || carried < limit)
        })
    });
}

impl State {
    /// Counts, delays and damages; false cuts.
    fn towards_client(&self, bytes: &mut [u8]) -> bool {
        let len = bytes.len() as i64;
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
        self.pace(bytes.len());
        self.down_bytes.fetch_add(len as u64, Ordering::SeqCst);
        let at = self.damage_at.load(Ordering::SeqCst);
        if at >= 0 {
            if at < len {
                bytes[at as usize] ^= 0x10;
            }
            self.damage_at.store(if at < len { -1 } else { at - len }, Ordering::SeqCst);
        }
        if self.budget.load(Ordering::SeqCst) >= 0 && self.budget.fetch_sub(len, Ordering::SeqCst) < len {
            self.cut.store(true, Ordering::SeqCst);
            close_all(self);
            return false;
        }
        true
    }
}

impl State {
    /// Waits until the limited line has carried so many bytes.
    fn pace(&self, len: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().expect("no panic");
            let now = Instant::now();
            let until = free_at.unwrap_or(now).max(now) + Duration::from_secs_f64(len as f64 / rate as f64);
            *free_at = Some(until);
            until
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&mut [u8]) -> bool) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 || !pass(&mut buffer[..len]) || to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

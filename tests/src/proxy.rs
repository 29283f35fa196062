//! A TCP proxy in front of the registry that can be cut, slowed, and made to damage what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    delay_ms: AtomicU64,
    down_bytes: AtomicU64,
    up_bytes: AtomicU64,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to this address.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            target: target.into(),
            cut: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            budget: AtomicI64::new(-1),
            damage_at: AtomicI64::new(-1),
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

    /// `http://127.0.0.1:port`.
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

fn serve(state: &Arc<State>, client: TcpStream) {
    if state.cut.load(Ordering::SeqCst) {
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
    std::thread::spawn(move || pump(server, client, |bytes| down.towards_client(bytes)));
}

impl State {
    /// Counts, delays and damages; false cuts.
    fn towards_client(&self, bytes: &mut [u8]) -> bool {
        let len = bytes.len() as i64;
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
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

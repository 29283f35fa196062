//! Debian's nginx as a caching proxy in front of a registry, with a folder and a port of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long it may take to begin, in steps of [`STEP`].
const STEPS: u32 = 500;
const STEP: Duration = Duration::from_millis(20);

/// A running nginx; stopped when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A single process of ours: nothing is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// The machine's program, or the one that the set-up of the tests has unpacked.
    pub fn program() -> Option<PathBuf> {
        let own = std::env::current_exe().ok()?;
        let unpacked = own.ancestors().skip(1).map(|folder| folder.join("tools/nginx/usr/sbin/nginx"));
        std::iter::once(PathBuf::from("/usr/sbin/nginx")).chain(unpacked).find(|path| path.exists())
    }

    /// Puts one in front of the registry at this URL, and waits until it answers.
    pub fn start(program: &Path, upstream: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        let at = folder.path();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{ worker_connections 2048; }}
            http {{
                access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
                proxy_cache_path {at}/cache keys_zone=turbo:1m max_size=4g;
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        proxy_pass {upstream};
                        proxy_http_version 1.1;
                        proxy_set_header Connection '';
                        proxy_cache turbo;
                        proxy_cache_lock on;
                        proxy_cache_lock_timeout 60s;
                        proxy_cache_lock_age 60s;
                        proxy_cache_revalidate on;
                        proxy_max_temp_file_size 4096m;
                        add_header x-cache $upstream_cache_status;
                    }}
                }}
            }}",
            at = at.display()
        );
        let file = at.join("nginx.conf");
        std::fs::write(&file, config).expect("a temporary file");
        let mut command = Command::new(program);
        command.arg("-p").arg(at).arg("-e").arg(at.join("error.log")).arg("-c").arg(&file);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx starts");
        for _ in 0..STEPS {
            if answers(port) {
                return Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
            }
            if matches!(child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(STEP);
        }
        let _ = (child.kill(), child.wait());
        panic!("nginx did not start: {}", std::fs::read_to_string(at.join("error.log")).unwrap_or_default());
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

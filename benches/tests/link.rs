//! The emulated link does what it says: rate, round trip, order, loss, and nothing left behind.
//! Needs root or user namespaces and `/dev/net/tun`; without them the tests say so and check nothing.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use benchmarks::link::{Link, LinkSpec, Side, Spawned};

fn up(spec: &LinkSpec) -> Option<Link> {
    match Link::up(spec) {
        Ok(link) => Some(link),
        Err(error) => {
            println!("skipped: {error:#}");
            None
        }
    }
}

/// A connection through the link: the server's stream and the client's.
fn connection(link: &Link) -> (TcpStream, TcpStream) {
    let listener = link.listen(Side::Server, 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = link.connect(Side::Client, SocketAddrV4::new(link.address(Side::Server), port)).unwrap();
    let (server, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), link.address(Side::Client));
    for stream in [&server, &client] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    (server, client)
}

/// Shortest of some round trips of one byte.
fn round_trip(server: TcpStream, mut client: TcpStream) -> Duration {
    let echo = std::thread::spawn(move || {
        let (mut reader, mut writer) = (&server, &server);
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() {
            writer.write_all(&byte).unwrap();
        }
    });
    let trips = (0..10).map(|_| {
        let start = Instant::now();
        client.write_all(&[1]).unwrap();
        client.read_exact(&mut [0]).unwrap();
        start.elapsed()
    });
    let shortest = trips.min().unwrap();
    drop(client);
    echo.join().unwrap();
    shortest
}

/// Payload bits per second of a transfer, without its first quarter, in which TCP finds the rate.
fn transfer_rate(mut from: TcpStream, mut to: TcpStream, len: usize) -> f64 {
    let sender = std::thread::spawn(move || from.write_all(&vec![7; len]).unwrap());
    let mut buffer = vec![0; len];
    to.read_exact(&mut buffer[..len / 4]).unwrap();
    let start = Instant::now();
    to.read_exact(&mut buffer[len / 4..]).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    sender.join().unwrap();
    (len - len / 4) as f64 * 8.0 / seconds
}

#[test]
fn round_trip_is_twice_the_delay() {
    let Some(link) = up(&LinkSpec::symmetric(50_000_000, Duration::from_millis(20))) else { return };
    let (server, client) = connection(&link);
    let shortest = round_trip(server, client);
    assert!((Duration::from_millis(40)..Duration::from_millis(46)).contains(&shortest), "{shortest:?}");
}

#[test]
fn rates_are_those_of_each_direction() {
    let mut spec = LinkSpec::symmetric(20_000_000, Duration::from_millis(5));
    spec.up.rate_bps = 8_000_000;
    let Some(link) = up(&spec) else { return };
    let (server, client) = connection(&link);
    let down = transfer_rate(server.try_clone().unwrap(), client.try_clone().unwrap(), 5_000_000);
    let up = transfer_rate(client, server, 2_000_000);
    // Headers and acknowledgements take 4 %; a link that is too fast is wrong, one on a busy machine may be slow.
    assert!((15e6..19.6e6).contains(&down), "down: {down} bit/s");
    assert!((6e6..7.9e6).contains(&up), "up: {up} bit/s");
    let stats = link.stats();
    assert!(stats.down.bytes > 5_000_000 && stats.up.bytes > 2_000_000, "{stats:?}");
    assert!(stats.down.bytes / stats.down.packets <= 1500, "packets are at most as large as the MTU: {stats:?}");
}

#[test]
fn data_survives_loss_and_jitter() {
    let mut spec = LinkSpec::symmetric(0, Duration::from_millis(2));
    spec.down.loss = 0.02;
    spec.down.jitter = Duration::from_millis(2);
    let Some(link) = up(&spec) else { return };
    let (mut server, mut client) = connection(&link);
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let sender = std::thread::spawn(move || server.write_all(&sent).unwrap());
    let mut received = vec![0; expected.len()];
    client.read_exact(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == expected);
    let stats = link.stats();
    assert!(stats.down.loss_drops > 0 && stats.up.loss_drops == 0, "{stats:?}");
}

#[test]
fn commands_run_at_their_ends_and_nothing_is_left() {
    let Some(link) = up(&LinkSpec::symmetric(0, Duration::ZERO)) else { return };
    let interfaces = |side| {
        let mut command = Command::new("cat");
        command.arg("/proc/net/dev");
        String::from_utf8(link.command(side, command).unwrap().output().unwrap().stdout).unwrap()
    };
    for side in [Side::Server, Side::Client] {
        let names: Vec<_> = interfaces(side).lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect();
        assert_eq!(names, ["lo", "wan0"]);
    }
    // One that leaves its group and its session, too.
    let mut command = Command::new("sh");
    command.args(["-c", "setsid sleep 1000 & exec sleep 1000"]);
    let spawned = Spawned::spawn(link.server_command(command).unwrap()).unwrap();
    let namespace = std::fs::read_link(format!("/proc/{}/ns/net", spawned.id())).unwrap();
    drop(spawned);
    drop(link);
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|ns| ns == namespace));
    assert_eq!(left.count(), 0);
}

#[test]
fn wait_listening_sees_a_listener_and_the_end_of_a_process() {
    let Some(link) = up(&LinkSpec::symmetric(0, Duration::ZERO)) else { return };
    let listener = link.listen(Side::Server, 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sleep = |time| {
        let mut command = Command::new("sleep");
        command.arg(time);
        Spawned::spawn(link.server_command(command).unwrap()).unwrap()
    };
    sleep("1000").wait_listening(port, Duration::from_secs(5)).unwrap();
    drop(listener);
    let ended = sleep("0").wait_listening(port, Duration::from_secs(5)).unwrap_err();
    assert!(ended.to_string().contains("ended"), "{ended}");
    let silent = sleep("1000").wait_listening(port, Duration::from_millis(100)).unwrap_err();
    assert!(silent.to_string().contains("nothing listens"), "{silent}");
}
